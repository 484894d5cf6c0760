//! The bytes of a response out of an open file, a piece at a time: however large the file is, no
//! more than a piece of it is in memory.

use std::fs::File;
use std::io::{self, Cursor, Read as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use super::range::{Layout, Part};

/// What is read at once and sent with one call.
pub const PIECE: usize = 64 << 10;

/// Why there is no next piece.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("pread() failed")]
    Io(#[from] io::Error),
    /// The file is shorter than it was: what `Content-Length` promised cannot be sent.
    #[error("pread() read only {read} of {wanted}")]
    Short { read: usize, wanted: usize },
}

/// A layout on its way from the file to the client.
#[derive(Debug)]
pub struct Content<'f> {
    file: &'f File,
    parts: smallvec::IntoIter<[Part; 1]>,
    /// What is left of the part under way.
    head: Cursor<Vec<u8>>,
    range: Range<u64>,
    piece: Vec<u8>,
}

impl<'f> Content<'f> {
    pub fn new(file: &'f File, layout: Layout) -> Self {
        let size = usize::try_from(layout.length()).map_or(PIECE, |length| length.min(PIECE));
        Content {
            file,
            parts: layout.parts.into_iter(),
            head: Cursor::default(),
            range: 0..0,
            piece: vec![0; size],
        }
    }

    /// The next piece; an empty one is the end.
    ///
    /// The file is read on the ring thread: what is in the page cache costs a copy, and a proxy's
    /// few files (error pages, icons) are.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "start <= end of a range, and no more is read than there is room"
    )]
    pub fn next_piece(&mut self) -> Result<&[u8], ReadError> {
        let mut filled = 0;
        while let Some(room) = self.piece.get_mut(filled..)
            && !room.is_empty()
        {
            let left = self.range.end - self.range.start;
            filled += match self.head.read(room)? {
                0 if left > 0 => {
                    let wanted = usize::try_from(left).map_or(room.len(), |n| n.min(room.len()));
                    let room = room.get_mut(..wanted).unwrap_or_default();
                    read_exactly(self.file, self.range.start, room)?;
                    self.range.start += wanted as u64;
                    wanted
                }
                0 => match self.parts.next() {
                    Some(Part { head, range }) => {
                        (self.head, self.range) = (Cursor::new(head), range);
                        0
                    }
                    None => break,
                },
                copied => copied,
            };
        }
        Ok(self.piece.get(..filled).unwrap_or_default())
    }
}

/// Fills `room` with what is in the file from `offset` on.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "no more is read than there is room, and no offset in a file has 64 bits"
)]
fn read_exactly(file: &File, offset: u64, room: &mut [u8]) -> Result<(), ReadError> {
    let wanted = room.len();
    let mut read = 0;
    while let Some(rest) = room.get_mut(read..)
        && !rest.is_empty()
    {
        match file.read_at(rest, offset + read as u64) {
            Ok(0) => return Err(ReadError::Short { read, wanted }),
            Ok(n) => read += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::super::tests::TempDir;
    use super::*;

    fn all(content: &mut Content<'_>) -> Result<Vec<u8>, ReadError> {
        let mut whole = Vec::new();
        loop {
            let piece = content.next_piece()?;
            assert!(piece.len() <= PIECE);
            if piece.is_empty() {
                return Ok(whole);
            }
            whole.extend_from_slice(piece);
        }
    }

    #[test]
    fn a_large_file_comes_in_pieces() {
        let directory = TempDir::new();
        let bytes: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        let file = File::open(directory.file("large", &bytes)).unwrap();

        let mut content = Content::new(&file, Layout::plain(0..200_000));
        assert_eq!(content.next_piece().unwrap(), &bytes[..PIECE]);
        assert_eq!(all(&mut content).unwrap(), &bytes[PIECE..]);

        let mut content = Content::new(&file, Layout::plain(70_000..150_000));
        assert_eq!(all(&mut content).unwrap(), &bytes[70_000..150_000]);
    }

    #[test]
    fn an_empty_file_is_at_its_end() {
        let directory = TempDir::new();
        let file = File::open(directory.file("empty", b"")).unwrap();
        assert!(Content::new(&file, Layout::plain(0..0)).next_piece().unwrap().is_empty());
    }

    #[test]
    fn parts_are_packed_into_pieces() {
        let directory = TempDir::new();
        let bytes: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        let file = File::open(directory.file("large", &bytes)).unwrap();

        let layout = Layout::multipart(smallvec![1..3, 9..100_009], 200_000, None, "B");
        let length = layout.length();
        let mut expected = b"\r\n--B\r\nContent-Range: bytes 1-2/200000\r\n\r\n\x01\x02".to_vec();
        expected.extend(b"\r\n--B\r\nContent-Range: bytes 9-100008/200000\r\n\r\n");
        expected.extend(&bytes[9..100_009]);
        expected.extend(b"\r\n--B--\r\n");
        assert_eq!(expected.len() as u64, length);

        let mut content = Content::new(&file, layout);
        assert_eq!(content.next_piece().unwrap(), &expected[..PIECE]);
        assert_eq!(all(&mut content).unwrap(), &expected[PIECE..]);
    }

    #[test]
    fn a_file_that_has_shrunk() {
        let directory = TempDir::new();
        let file = File::open(directory.file("short", b"only ten b")).unwrap();
        let error = all(&mut Content::new(&file, Layout::plain(0..100))).unwrap_err();
        assert_eq!(error.to_string(), "pread() read only 10 of 100");
    }
}
