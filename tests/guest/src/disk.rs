//! Disks, read and written with O_DIRECT.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::thread::sleep;
use std::time::{Duration, Instant};

use guest::pattern_byte;
use nix::fcntl::OFlag;
use sha2::{Digest as _, Sha256};

use crate::system::Error;

/// The most bytes of one transfer.
const CHUNK: usize = 128 << 10;

/// The size of a single read in bytes.
pub const BLOCK: u64 = 4096;

/// How long the controllers may take until their disks appear. Old SCSI controllers reset their bus
/// and ask each of 15 targets.
const DISK_TIMEOUT: Duration = Duration::from_secs(20);

/// How names of disks begin: NVMe, SCSI, virtio and SD cards.
const KINDS: [&str; 4] = ["nvme", "sd", "vd", "mmcblk"];

/// A buffer for O_DIRECT, which must be aligned to the disk's blocks.
#[repr(C, align(4096))]
struct Chunk([u8; CHUNK]);

/// A disk: see [`KINDS`].
pub struct Disk {
    /// The kernel's name, such as `nvme0n1`.
    pub name: String,
    path: String,
    file: File,
    chunk: Box<Chunk>,
}

impl Disk {
    fn open(name: String) -> Result<Self, Error> {
        let path = format!("/dev/{name}");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_DIRECT.bits())
            .open(&path)
            .map_err(Error::file("open", &path))?;
        Ok(Self { name, path, file, chunk: Box::new(Chunk([0; CHUNK])) })
    }

    /// Opens the same disk once more.
    pub fn reopen(&self) -> Result<Self, Error> {
        Self::open(self.name.clone())
    }

    /// The size in bytes.
    pub fn size(&self) -> Result<u64, Error> {
        let path = format!("/sys/block/{}/size", self.name);
        // The kernel counts in sectors of 512 bytes for every disk.
        Ok(crate::system::read(&path)?
            .trim()
            .parse::<u64>()
            .unwrap_or_default()
            .saturating_mul(512))
    }

    /// The SHA-256 of the first `bytes`, in hexadecimal.
    pub fn hash(&mut self, bytes: u64) -> Result<String, Error> {
        let mut hash = Sha256::new();
        for (offset, length) in chunks(0, bytes) {
            hash.update(self.read(offset, length)?);
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Writes `bytes` of the pattern from `start` on.
    pub fn write_pattern(&mut self, start: u64, bytes: u64) -> Result<(), Error> {
        for (offset, length) in chunks(start, bytes) {
            let buffer = self.chunk.0.get_mut(..length).unwrap_or_default();
            (offset..).zip(buffer.iter_mut()).for_each(|(at, byte)| *byte = pattern_byte(at));
            self.file.write_all_at(buffer, offset).map_err(Error::file("write", &self.path))?;
        }
        self.file.sync_all().map_err(Error::file("flush", &self.path))
    }

    /// Whether the disk has `bytes` of the pattern from `start` on.
    pub fn has_pattern(&mut self, start: u64, bytes: u64) -> Result<bool, Error> {
        for (offset, length) in chunks(start, bytes) {
            let buffer = self.read(offset, length)?;
            if !(offset..).zip(buffer).all(|(at, byte)| *byte == pattern_byte(at)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The number of the reboot to do now, from 1 to `times`, or `None` after the last. The disk's
    /// last block holds the number of reboots done; it is 0 before the first and after the last.
    pub fn next_reboot(&mut self, times: u8) -> Result<Option<u8>, Error> {
        let last = self.size()?.saturating_sub(BLOCK);
        let done = self.read(last, 4096)?.first().copied().unwrap_or_default();
        let next = (done < times).then(|| done.saturating_add(1));
        let buffer = self.chunk.0.get_mut(..4096).unwrap_or_default();
        buffer.fill(next.unwrap_or_default());
        let written = self.file.write_all_at(buffer, last);
        written.map_err(Error::file("write", &self.path))?;
        self.file.sync_all().map_err(Error::file("flush", &self.path))?;
        Ok(next)
    }

    /// Reads one block, and returns its data.
    pub fn block(&mut self, offset: u64) -> Result<&[u8], Error> {
        self.read(offset, 4096)
    }

    /// Reads one block.
    pub fn read_block(&mut self, offset: u64) -> Result<(), Error> {
        self.read(offset, 4096).map(|_| ())
    }

    fn read(&mut self, offset: u64, length: usize) -> Result<&[u8], Error> {
        let buffer = self.chunk.0.get_mut(..length).unwrap_or_default();
        self.file.read_exact_at(buffer, offset).map_err(Error::file("read", &self.path))?;
        Ok(buffer)
    }
}

/// Offset and length of the transfers that cover `bytes` from `start` on.
fn chunks(start: u64, bytes: u64) -> impl Iterator<Item = (u64, usize)> {
    let end = start.saturating_add(bytes);
    (start..end).step_by(CHUNK).map(move |offset| {
        let left = usize::try_from(end.saturating_sub(offset)).unwrap_or(CHUNK);
        (offset, left.min(CHUNK))
    })
}

/// Waits until a disk appears that is not in `known`; opens it.
pub fn open_new(known: &[String], patience: Duration) -> Result<Disk, Error> {
    let begin = Instant::now();
    while begin.elapsed() < patience {
        // A disk may leave between the two calls.
        let new = names().into_iter().find(|name| !known.contains(name));
        if let Some(disk) = new.and_then(|name| Disk::open(name).ok()) {
            return Ok(disk);
        }
        sleep(Duration::from_millis(1));
    }
    let expected = known.len().saturating_add(1);
    Err(Error::NoDisk { found: names().len(), expected })
}

/// Waits for `expected` disks, then opens all disks, in the order of their names.
pub fn open_all(expected: usize) -> Result<Vec<Disk>, Error> {
    let deadline = Instant::now().checked_add(DISK_TIMEOUT);
    loop {
        let names = names();
        if names.len() >= expected {
            return names.into_iter().map(Disk::open).collect();
        }
        if deadline.is_none_or(|deadline| Instant::now() > deadline) {
            return Err(Error::NoDisk { found: names.len(), expected });
        }
        sleep(Duration::from_millis(2));
    }
}

/// The names of all disks, sorted.
pub fn names() -> Vec<String> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| KINDS.iter().any(|kind| name.starts_with(kind)) && !is_hidden(name))
        .collect();
    names.sort();
    names
}

/// Whether a disk has no device node. With multipath, each path to an NVMe is such a disk beside the
/// one that joins all paths.
fn is_hidden(name: &str) -> bool {
    let hidden = fs::read_to_string(format!("/sys/block/{name}/hidden"));
    hidden.is_ok_and(|hidden| hidden.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_exactly_the_requested_bytes() {
        let found: Vec<_> = chunks(4096, CHUNK as u64 + 512).collect();
        assert_eq!(found, [(4096, CHUNK), (4096 + CHUNK as u64, 512)]);
        assert_eq!(chunks(0, 0).count(), 0);
    }
}
