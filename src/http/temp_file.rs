//! Temporary files with nginx's naming: for bodies and responses that do not fit into memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::count;
use super::modules::core::TempPath;

/// A temporary file with nginx's naming.
#[derive(Debug)]
pub struct TempFile {
    file: File,
    path: PathBuf,
    len: u64,
    after: After,
}

/// What becomes of a temporary file's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It is taken away as soon as the file is open: whatever happens, nothing is left behind.
    Nameless,
    /// It is taken away when the file is dropped.
    Removed,
    /// It stays.
    Kept,
}

/// What a temporary file has failed with.
#[derive(Debug, thiserror::Error)]
#[error("{call} \"{}\" failed", path.display())]
pub struct FileError {
    /// The system call.
    call: &'static str,
    path: PathBuf,
    pub error: io::Error,
}

/// One number for the whole process, as the names must differ between shards. Touched only when a
/// body does not fit into memory.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);
/// Their ten digits.
const NUMBERS: u64 = 10_000_000_000;

/// After a number that is taken, by a file that was kept before a restart: many more may be taken behind
/// it, so it goes on from anywhere, as in nginx.
fn skip_numbers() {
    let [.., a, b, c, d] = crate::os::random_bytes();
    let step = u64::from(u32::from_ne_bytes([a, b, c, d]));
    NEXT_NUMBER.fetch_add(step, Ordering::Relaxed);
}

impl TempFile {
    /// A file that only its owner can reach.
    pub fn create(temp: &TempPath) -> Result<Self, FileError> {
        Self::create_for(temp, After::Nameless)
    }

    /// Makes `PATH/…/0000000001`; the level directories are the number's last digits.
    pub fn create_for(temp: &TempPath, after: After) -> Result<Self, FileError> {
        let (file, path) = match after {
            After::Nameless => Self::create_unlinked(temp)?,
            After::Removed | After::Kept => Self::open(temp)?,
        };
        Ok(TempFile { file, path, len: 0, after })
    }

    /// Makes such a file without a name: it lives as long as it is open. The path is where it was.
    pub fn create_unlinked(temp: &TempPath) -> Result<(File, PathBuf), FileError> {
        let (file, path) = Self::open(temp)?;
        match std::fs::remove_file(&path) {
            Ok(()) => Ok((file, path)),
            Err(error) => Err(FileError { call: "unlink()", path, error }),
        }
    }

    fn open(temp: &TempPath) -> Result<(File, PathBuf), FileError> {
        loop {
            let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed) % NUMBERS;
            let name = format!("{number:010}");
            let mut directory = temp.path.clone();
            let mut digits = name.as_str();
            for level in temp.levels.into_iter().filter(|&level| level > 0) {
                let (before, last) = digits.split_at(digits.len().saturating_sub(level as usize));
                directory.push(last);
                digits = before;
            }
            let path = directory.join(&name);
            let open =
                || File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
            let file = match open() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
                        .recursive(true)
                        .create(&directory)
                        .map_err(|error| FileError { call: "mkdir()", path: directory, error })?;
                    open()
                }
                opened => opened,
            };
            match file {
                Ok(file) => return Ok((file, path)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => skip_numbers(),
                Err(error) => return Err(FileError { call: "open()", path, error }),
            }
        }
    }

    pub fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all_at(bytes, self.len).map_err(|error| FileError {
            call: "pwrite()",
            path: self.path.clone(),
            error,
        })?;
        count::add(&mut self.len, bytes.len() as u64);
        Ok(())
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads at `offset` behind the buffer's content.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if self.after == After::Removed {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_files_are_not_tried_one_by_one() {
        let root = std::env::temp_dir().join(format!("ringx-kept-{}", std::process::id()));
        std::fs::create_dir(&root).unwrap();
        let next = NEXT_NUMBER.load(Ordering::Relaxed);
        for number in next..next + 2000 {
            std::fs::write(root.join(format!("{number:010}")), "kept").unwrap();
        }
        let temp = TempPath { path: root.clone(), levels: [0; 3] };
        let file = TempFile::create_for(&temp, After::Removed).unwrap();
        let name = file.path().file_name().unwrap().to_str().unwrap();
        // Others take some as well; it is but one in two million that lands within.
        assert!(name.parse::<u64>().unwrap() > next + 2000, "{name}");
        assert!(NEXT_NUMBER.load(Ordering::Relaxed) > next + 2001);
        drop(file);
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_temporary_file_is_named_by_levels_and_goes_away() {
        let root = std::env::temp_dir().join(format!("ringx-body-{}", std::process::id()));
        let temp = TempPath { path: root.clone(), levels: [1, 2, 0] };
        let mut file = TempFile::create_for(&temp, After::Removed).unwrap();
        file.append(b"hello ").unwrap();
        file.append(b"world").unwrap();
        let path = file.path().to_owned();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(path, root.join(&name[9..10]).join(&name[7..9]).join(&name));
        let mut read = [0; 20];
        assert_eq!(file.read_at(6, &mut read).unwrap(), 5);
        assert_eq!(&read[..5], b"world");
        assert!(path.exists());
        drop(file);
        assert!(!path.exists());

        let mut nameless = TempFile::create(&temp).unwrap();
        assert!(!nameless.path().exists());
        nameless.append(b"still there").unwrap();
        assert_eq!(nameless.read_at(6, &mut read).unwrap(), 5);

        let kept = TempFile::create_for(&temp, After::Kept).unwrap();
        let path = kept.path().to_owned();
        drop(kept);
        assert!(path.exists());
        std::fs::remove_dir_all(root).unwrap();
    }
}
