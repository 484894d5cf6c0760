//! The bytes of a response out of an open file, a piece at a time: however large the file is, no
//! more than a piece of it is in memory.

use std::fs::File;
use std::io::{self, Cursor, Read as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use super::range::{Layout, Part};

/// What is read at once and sent with one call, at most.
pub const PIECE: usize = 64 << 10;
/// The same of what is longer, at first and for a client that did not take all of the last one.
const SMALL_PIECE: usize = 16 << 10;

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
    /// No larger than the next piece is to be.
    piece: Vec<u8>,
    size: usize,
    /// Bytes of the piece.
    filled: usize,
    /// The last ones of them, which are from where `range` begins now.
    of_range: u64,
}

impl<'f> Content<'f> {
    pub fn new(file: &'f File, layout: Layout) -> Self {
        let length = usize::try_from(layout.length()).unwrap_or(usize::MAX);
        Content {
            file,
            parts: layout.parts.into_iter(),
            head: Cursor::default(),
            range: 0..0,
            piece: Vec::new(),
            size: if length > PIECE { SMALL_PIECE } else { length },
            filled: 0,
            of_range: 0,
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
        self.filled = 0;
        if self.is_at_end() {
            return Ok(&[]);
        }
        if self.piece.len() != self.size {
            self.piece = vec![0; self.size];
        }
        // Whoever comes again has taken all of the last one.
        self.size = PIECE.min(self.size.saturating_mul(4)).max(self.size);
        self.of_range = 0;
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
                    self.of_range += wanted as u64;
                    wanted
                }
                0 => match self.parts.next() {
                    Some(Part { head, range }) => {
                        (self.head, self.range) = (Cursor::new(head), range);
                        self.of_range = 0;
                        0
                    }
                    None => break,
                },
                copied => copied,
            };
        }
        self.filled = filled;
        Ok(self.piece.get(..filled).unwrap_or_default())
    }

    fn is_at_end(&self) -> bool {
        let head = self.head.get_ref().len() as u64;
        self.head.position() >= head && self.range.is_empty() && self.parts.as_slice().is_empty()
    }

    /// The last `n` bytes of the last piece have not been taken: they come again. What is in the file
    /// is not held until then.
    pub fn put_back(&mut self, n: usize) {
        let of_range = self.of_range.min(n as u64);
        self.range.start = self.range.start.saturating_sub(of_range);
        // What stands ahead of it: heads of parts, and the end of a part before.
        let end = self.filled.saturating_sub(of_range as usize);
        let start = self.filled.saturating_sub(n);
        let mut ahead = self.piece.get(start..end).unwrap_or_default().to_vec();
        let behind = self.head.get_ref().get(self.head.position() as usize..).unwrap_or_default();
        ahead.extend_from_slice(behind);
        self.head = Cursor::new(ahead);
        (self.piece, self.filled, self.of_range) = (Vec::new(), 0, 0);
        self.size = self.size.min(SMALL_PIECE);
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
        assert_eq!(content.next_piece().unwrap(), &bytes[..SMALL_PIECE]);
        let second = SMALL_PIECE..SMALL_PIECE + PIECE;
        assert_eq!(content.next_piece().unwrap(), &bytes[second.clone()]);
        assert_eq!(all(&mut content).unwrap(), &bytes[second.end..]);

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

        let mut content = Content::new(&file, layout.clone());
        assert_eq!(content.next_piece().unwrap(), &expected[..SMALL_PIECE]);
        assert_eq!(all(&mut content).unwrap(), &expected[SMALL_PIECE..]);

        // However little is taken of a piece, and wherever it ends.
        for taken in [1, 20, 77, 1000, 16_000, 70_000] {
            let mut content = Content::new(&file, layout.clone());
            let mut whole = Vec::new();
            loop {
                let piece = content.next_piece().unwrap();
                if piece.is_empty() {
                    break;
                }
                let (length, took) = (piece.len(), taken.min(piece.len()));
                whole.extend_from_slice(&piece[..took]);
                if took < length {
                    content.put_back(length - took);
                    assert!(content.piece.is_empty(), "nothing is held");
                }
            }
            assert!(whole == expected, "{taken} at a time");
        }
    }

    #[test]
    fn a_file_that_has_shrunk() {
        let directory = TempDir::new();
        let file = File::open(directory.file("short", b"only ten b")).unwrap();
        let error = all(&mut Content::new(&file, Layout::plain(0..100))).unwrap_err();
        assert_eq!(error.to_string(), "pread() read only 10 of 100");
    }
}
