//! A file that is read and written by the ring: a slow disk holds up the task that waits, and not
//! its shard. (Without `io_uring` the calls are made in place.)

use std::io;

use super::Buffer;

pub struct File {
    inner: monoio::fs::File,
}

impl File {
    pub fn new(file: std::fs::File) -> io::Result<Self> {
        Ok(File { inner: monoio::fs::File::from_std(file)? })
    }

    /// Writes all of the buffer's content at `offset`. Gives back what could not be written.
    pub async fn write_all_at(&self, buffer: Buffer, offset: u64) -> (io::Result<()>, Buffer) {
        let (mut buffer, mut offset) = (buffer, offset);
        while !buffer.is_empty() {
            let (written, returned) = self.inner.write_at(buffer, offset).await;
            buffer = returned;
            match written {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buffer),
                Ok(n) => {
                    buffer.consume(n);
                    offset = offset.saturating_add(n as u64);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return (Err(e), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Reads behind the buffer's content, at most what there is room for; no bytes is the end.
    pub async fn read_at(&self, buffer: Buffer, offset: u64) -> (io::Result<usize>, Buffer) {
        self.inner.read_at(buffer, offset).await
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("File")
    }
}
