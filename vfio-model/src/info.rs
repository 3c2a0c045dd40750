//! Replies of the info ioctls: `argsz`, and the chain of capabilities behind the struct.
//!
//! The caller states the size of its buffer in `argsz`. The oldest fields must fit (EINVAL); newer
//! fields are written as far as they fit. Capabilities are written if all of them fit; otherwise
//! the reply holds the needed size in `argsz`, and 0 as the offset of the first capability.

use std::io;

use crate::errno::errno;
use crate::kernel::Kernel;

/// The capabilities of a reply, each behind its `struct vfio_info_cap_header`: id, version and the
/// offset of the next from the start of the reply (`vfio_info_cap_add`).
#[derive(Debug)]
pub(crate) struct Capabilities {
    aligned: bool,
    /// The offset of each from the first.
    starts: Vec<usize>,
    bytes: Vec<u8>,
}

const HEADER: usize = 8;

impl Capabilities {
    pub fn new(aligned: bool) -> Self {
        Self { aligned, starts: Vec::new(), bytes: Vec::new() }
    }

    /// Adds a capability of version 1 at the end of the chain.
    pub fn add(&mut self, id: u32, data: &[u8]) {
        self.starts.push(self.bytes.len());
        let [low, high, ..] = id.to_le_bytes();
        self.bytes.extend(u16::from_le_bytes([low, high]).to_ne_bytes());
        self.bytes.extend(1_u16.to_ne_bytes());
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend(data);
        if self.aligned {
            let size = self.bytes.len().next_multiple_of(HEADER);
            self.bytes.resize(size, 0);
        }
    }

    /// The chain behind `shift` bytes of a reply: each `next` is an offset in the reply, and the
    /// last is 0 (`vfio_info_cap_shift`).
    fn shifted(&self, shift: usize) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let nexts = self.starts.iter().zip(self.starts.iter().skip(1));
        for (start, next) in nexts {
            let next = u32::try_from(next.saturating_add(shift)).unwrap_or(u32::MAX);
            put(&mut bytes, start.saturating_add(4), &next.to_ne_bytes());
        }
        bytes
    }
}

/// The reply to an info ioctl, in the caller's buffer.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    buffer: &'a mut [u8],
    argsz: usize,
    /// The struct that the kernel copies back at the end.
    fields: Vec<u8>,
}

impl<'a> Reply<'a> {
    /// Checks `argsz`, the first word of the buffer. `oldest` and `newest` are the sizes of the
    /// struct's versions.
    pub fn begin(
        buffer: &'a mut [u8],
        oldest: usize,
        newest: usize,
        kernel: Kernel,
    ) -> io::Result<Self> {
        let argsz = argsz(buffer);
        if argsz < oldest {
            return Err(errno(libc::EINVAL));
        }
        let given = oldest.min(newest).min(buffer.len());
        let mut fields = buffer.get(..given).unwrap_or_default().to_vec();
        let used = match argsz < newest && !kernel.writes_parts_of_fields() {
            true => oldest,
            false => argsz.min(newest),
        };
        fields.resize(used, 0);
        Ok(Self { buffer, argsz, fields })
    }

    pub fn put_u32(&mut self, offset: usize, value: u32) {
        put(&mut self.fields, offset, &value.to_ne_bytes());
    }

    pub fn put_u64(&mut self, offset: usize, value: u64) {
        put(&mut self.fields, offset, &value.to_ne_bytes());
    }

    /// Writes the reply with capabilities behind a struct of `size` bytes. The word at `offset`
    /// holds the offset of the first, and `flag` in the second word reports them.
    pub fn finish(mut self, capabilities: &Capabilities, size: usize, flag: u32, offset: usize) {
        if !capabilities.bytes.is_empty() {
            let flags = word(&self.fields, 4) | flag;
            self.put_u32(4, flags);
            let needed = size.saturating_add(capabilities.bytes.len());
            if self.argsz < needed {
                self.put_u32(0, u32::try_from(needed).unwrap_or(u32::MAX));
                self.put_u32(offset, 0);
            } else {
                put(self.buffer, size, &capabilities.shifted(size));
                self.put_u32(offset, u32::try_from(size).unwrap_or(u32::MAX));
            }
        }
        put(self.buffer, 0, &self.fields);
    }

    /// Writes a reply without capabilities.
    pub fn write(self) {
        put(self.buffer, 0, &self.fields);
    }
}

/// The first word of an argument.
pub(crate) fn argsz(buffer: &[u8]) -> usize {
    word(buffer, 0) as usize
}

/// The word at an offset; 0 beyond the end.
pub(crate) fn word(bytes: &[u8], offset: usize) -> u32 {
    let word = bytes.get(offset..).and_then(|bytes| bytes.first_chunk());
    word.map_or(0, |word| u32::from_ne_bytes(*word))
}

/// Writes the bytes that fit.
pub(crate) fn put(bytes: &mut [u8], offset: usize, data: &[u8]) {
    let room = bytes.get_mut(offset..).unwrap_or_default();
    room.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two(aligned: bool) -> Capabilities {
        let mut capabilities = Capabilities::new(aligned);
        capabilities.add(7, &[1, 2, 3, 4]);
        capabilities.add(9, &[5; 8]);
        capabilities
    }

    /// A buffer of `argsz` bytes that begins with `argsz`; its other bytes are 0xa5.
    fn buffer(argsz: u32) -> Vec<u8> {
        let mut bytes = argsz.to_ne_bytes().to_vec();
        bytes.resize(argsz as usize, 0xa5);
        bytes
    }

    #[test]
    fn offsets_in_the_chain_count_from_the_start_of_the_reply() {
        let bytes = two(false).shifted(24);
        assert_eq!(bytes.len(), 12 + 16);
        assert_eq!((word(&bytes, 4), word(&bytes, 12 + 4)), (24 + 12, 0));
        let bytes = two(true).shifted(24);
        assert_eq!(bytes.len(), 16 + 16);
        assert_eq!(word(&bytes, 4), 24 + 16);
    }

    #[test]
    fn an_argsz_below_the_oldest_fields_is_refused() {
        let error = Reply::begin(&mut buffer(15), 16, 24, Kernel::Linux6_12).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn without_room_the_reply_reports_the_needed_size() {
        let mut buffer = buffer(24 + 27);
        let reply = Reply::begin(&mut buffer, 16, 24, Kernel::Linux6_12).unwrap();
        reply.finish(&two(false), 24, 2, 16);
        assert_eq!(word(&buffer, 0), 24 + 28);
        assert_eq!(word(&buffer, 16), 0);
        assert_eq!(&buffer[24..28], &[0xa5; 4], "nothing is written after the struct");
    }

    #[test]
    fn with_room_the_capabilities_follow_the_struct() {
        let mut buffer = buffer(24 + 28);
        let reply = Reply::begin(&mut buffer, 16, 24, Kernel::Linux6_12).unwrap();
        reply.finish(&two(false), 24, 2, 16);
        assert_eq!((word(&buffer, 0), word(&buffer, 16)), (24 + 28, 24));
        assert_eq!(word(&buffer, 24) & 0xffff, 7);
    }

    #[test]
    fn an_argsz_between_versions_is_used_in_full_by_some_kernels() {
        for (kernel, written) in [(Kernel::Linux6_1, 16), (Kernel::Linux6_12, 18)] {
            let mut bytes = buffer(24);
            bytes[..4].copy_from_slice(&18_u32.to_ne_bytes());
            Reply::begin(&mut bytes, 16, 20, kernel).unwrap().write();
            assert!(bytes[16..written].iter().all(|byte| *byte == 0), "{kernel:?}");
            assert_eq!(bytes[written], 0xa5, "{kernel:?}");
        }
    }

    #[test]
    fn fields_beyond_argsz_are_left_alone() {
        let mut bytes = buffer(24);
        bytes[..4].copy_from_slice(&16_u32.to_ne_bytes());
        let mut reply = Reply::begin(&mut bytes, 16, 24, Kernel::Linux6_12).unwrap();
        reply.put_u64(8, 0);
        reply.put_u32(16, 0);
        reply.write();
        assert_eq!(&bytes[8..20], &[0, 0, 0, 0, 0, 0, 0, 0, 0xa5, 0xa5, 0xa5, 0xa5]);
    }
}
