//! The bytes of a fuzzer, read as numbers. Reads past the end return zeros.

/// The bytes that a target has not read yet.
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let (now, rest) = self.0.split_at(N.min(self.0.len()));
        self.0 = rest;
        let mut bytes = [0; N];
        bytes[..now.len()].copy_from_slice(now);
        bytes
    }

    pub fn u8(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    /// A length byte, then as many bytes: at most 255.
    pub fn run(&mut self) -> Vec<u8> {
        let length = usize::from(self.u8()).min(self.0.len());
        let (now, rest) = self.0.split_at(length);
        self.0 = rest;
        now.to_vec()
    }
}
