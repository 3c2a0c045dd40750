//! Linux's bzImage, by its boot protocol (Documentation/arch/x86/boot.rst and zero-page.rst).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Where the setup header begins, in the image and in the zero page alike.
const HEADER: usize = 0x1f1;
/// How far the header reaches at most: the zero page has other fields from here on.
const HEADER_END: usize = 0x290;
/// The second byte of a jump over the header: counted from [`MAGIC`], it leads to the header's end.
const JUMP: usize = 0x201;
const SETUP_SECTORS: usize = HEADER;
const MAGIC: usize = 0x202;
const LOADFLAGS: usize = 0x211;
const INITRD_ADDR_MAX: usize = 0x22c;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;

const SECTOR: u64 = 512;
/// `loadflags` bit 0: the protected-mode part is loaded at 1 MiB, as a bzImage's is.
const LOADED_HIGH: u8 = 1;
/// `xloadflags` bit 0: there is a 64-bit entry.
const XLF_KERNEL_64: u16 = 1;

/// The zero page, which has the setup header of a bzImage in it.
#[derive(Debug, Clone)]
pub struct ZeroPage(Box<[u8; 4096]>);

impl ZeroPage {
    /// Takes the setup header of an image, if the image is a bzImage with a 64-bit entry.
    pub fn of(image: &File) -> Result<Self, String> {
        let mut start = [0; HEADER_END];
        match image.read_exact_at(&mut start, 0) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error.to_string()),
            // A shorter image has no header, which the next check finds.
            _ => Self::from_start(&start),
        }
    }

    fn from_start(start: &[u8; HEADER_END]) -> Result<Self, String> {
        let jump = start.get(JUMP).copied().unwrap_or_default();
        let end = MAGIC.saturating_add(jump.into()).min(HEADER_END);
        let mut page = Self(Box::new([0; 4096]));
        page.set(HEADER, start.get(HEADER..end).unwrap_or_default());
        if page.field(MAGIC) != *b"HdrS" || page.u8(LOADFLAGS) & LOADED_HIGH == 0 {
            return Err("it has no setup header of a bzImage".into());
        }
        if u16::from_le_bytes(page.field(XLOADFLAGS)) & XLF_KERNEL_64 == 0 {
            return Err("it has no 64-bit entry point".into());
        }
        Ok(page)
    }

    /// Where the protected-mode part begins in the image: after the boot sector and the setup code.
    pub fn kernel_offset(&self) -> u64 {
        let sectors = match self.u8(SETUP_SECTORS) {
            0 => 4,
            sectors => sectors,
        };
        u64::from(sectors).saturating_add(1).saturating_mul(SECTOR)
    }

    /// The end of what the kernel needs to unpack itself where it prefers to run.
    pub fn unpacked_end(&self) -> u64 {
        let start = u64::from_le_bytes(self.field(PREF_ADDRESS));
        start.saturating_add(self.u32(INIT_SIZE).into())
    }

    /// The first address that an initramfs may not touch.
    pub fn initrd_limit(&self) -> u64 {
        u64::from(self.u32(INITRD_ADDR_MAX)).saturating_add(1)
    }

    /// The longest command line, without the final zero.
    pub fn cmdline_limit(&self) -> u32 {
        self.u32(CMDLINE_SIZE)
    }

    /// Sets the field at `offset`.
    pub fn set(&mut self, offset: usize, bytes: &[u8]) {
        let field = self.0.iter_mut().skip(offset);
        field.zip(bytes).for_each(|(byte, new)| *byte = *new);
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_slice()
    }

    fn u8(&self, offset: usize) -> u8 {
        u8::from_le_bytes(self.field(offset))
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.field(offset))
    }

    /// Zeros where the page ends first; no field is there.
    fn field<const N: usize>(&self, offset: usize) -> [u8; N] {
        let field = self.0.get(offset..).and_then(|rest| rest.first_chunk());
        field.copied().unwrap_or([0; N])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The start of an image whose header ends at 0x26c, as that of Linux 6.12.
    fn start() -> [u8; HEADER_END] {
        let mut start = [0xcc; HEADER_END];
        let fields: [(usize, &[u8]); 9] = [
            (SETUP_SECTORS, &[27]),
            (JUMP, &[0x6a]),
            (MAGIC, b"HdrS"),
            (LOADFLAGS, &[1]),
            (XLOADFLAGS, &[0x3f, 0]),
            (INITRD_ADDR_MAX, &0x7fff_ffff_u32.to_le_bytes()),
            (CMDLINE_SIZE, &2047_u32.to_le_bytes()),
            (PREF_ADDRESS, &0x100_0000_u64.to_le_bytes()),
            (INIT_SIZE, &0x20_0000_u32.to_le_bytes()),
        ];
        for (offset, bytes) in fields {
            start[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        start
    }

    #[test]
    fn the_zero_page_has_the_header_and_nothing_else() {
        let page = ZeroPage::from_start(&start()).unwrap();
        assert_eq!(page.bytes()[HEADER..0x26c], start()[HEADER..0x26c]);
        assert!(page.bytes()[..HEADER].iter().all(|byte| *byte == 0));
        assert!(page.bytes()[0x26c..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn fields_are_read() {
        let page = ZeroPage::from_start(&start()).unwrap();
        assert_eq!(page.kernel_offset(), 28 * 512);
        assert_eq!(page.unpacked_end(), 0x120_0000);
        assert_eq!((page.initrd_limit(), page.cmdline_limit()), (1 << 31, 2047));
    }

    #[test]
    fn no_setup_sectors_are_four() {
        let mut start = start();
        start[SETUP_SECTORS] = 0;
        assert_eq!(ZeroPage::from_start(&start).unwrap().kernel_offset(), 5 * 512);
    }

    #[test]
    fn an_image_without_a_needed_field_is_refused() {
        let cases = [
            (MAGIC, "it has no setup header of a bzImage"),
            (LOADFLAGS, "it has no setup header of a bzImage"),
            (XLOADFLAGS, "it has no 64-bit entry point"),
        ];
        for (offset, why) in cases {
            let mut start = start();
            start[offset] = 0;
            assert_eq!(ZeroPage::from_start(&start).unwrap_err(), why);
        }
    }
}
