//! Recognizes a file by its first bytes, for messages about files that Linux does not boot from.
//! Pure.

/// The number of bytes that [`Format::of`] looks at.
pub(in crate::guest) const HEAD: usize = 4096;

/// The setup header of a bzImage (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").
const SETUP_MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
/// The name of the section of a unified kernel image that holds the kernel
/// (uapi-group.org/specifications/specs/unified_kernel_image).
const UKI_SECTION: &[u8; 8] = b".linux\0\0";

/// A program that compresses files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::guest) struct Compression {
    /// The program's name.
    pub(in crate::guest) name: &'static str,
    /// How to compress the file for Linux; `None` if Linux unpacks this form.
    pub(in crate::guest) repack: Option<&'static str>,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::guest) enum Format {
    BzImage,
    Elf,
    /// A compressed file of any content.
    Compressed(Compression),
    /// A cpio archive in the form "newc", which Linux unpacks.
    Cpio,
    /// A cpio archive in another form.
    OldCpio,
    /// A file system, which an old Linux takes as an initrd.
    FileSystem(&'static str),
    /// A kernel for another architecture.
    Foreign(&'static str),
    /// A unified kernel image.
    Uki,
    /// An EFI program.
    Efi,
    Disk(&'static str),
    Text,
    /// An unknown format.
    Unknown,
}

const fn known(name: &'static str) -> Format {
    Format::Compressed(Compression { name, repack: None })
}

const fn repack(name: &'static str, how: &'static str) -> Format {
    Format::Compressed(Compression { name, repack: Some(how) })
}

/// Offsets, the bytes there, and the format. The compressed ones are those of `lib/decompress.c`,
/// and some that it lacks. A kernel can begin like a program or a disk, so kernels come first.
const MAGICS: [(usize, &[u8], Format); 31] = [
    (SETUP_MAGIC.0, SETUP_MAGIC.1, Format::BzImage),
    (0, b"\x7fELF", Format::Elf),
    (0x38, b"ARM\x64", Format::Foreign("arm64")),
    (0x38, b"RSC\x05", Format::Foreign("RISC-V")),
    (4, b"zimg", Format::Foreign("EFI (zboot)")),
    (0, b"\x27\x05\x19\x56", Format::Foreign("U-Boot (uImage)")),
    (0, b"\xd0\x0d\xfe\xed", Format::Foreign("U-Boot (FIT)")),
    (0, b"070701", Format::Cpio),
    (0, b"070702", Format::Cpio),
    (0, b"070707", Format::OldCpio),
    (0, b"\xc7\x71", Format::OldCpio),
    (0, b"\x1f\x8b", known("gzip")),
    (0, b"\x1f\x9e", known("gzip")),
    (0, b"BZh", known("bzip2")),
    (0, b"\x5d\x00\x00", known("lzma")),
    (0, b"\xfd7zXZ\x00\x00\x00", known("xz")),
    (0, b"\xfd7zXZ\x00\x00\x01", known("xz")),
    // Linux knows no other checksum (lib/xz/xz_dec_stream.c).
    (0, b"\xfd7zXZ", repack("xz", "xz --check=crc32")),
    (0, b"\x89LZO", known("lzop")),
    (0, b"\x02\x21\x4c\x18", known("lz4")),
    (0, b"\x04\x22\x4d\x18", repack("lz4", "lz4 -l")),
    (0, b"\x28\xb5\x2f\xfd", known("zstd")),
    (0, b"PK\x03\x04", repack("zip", "gzip")),
    (0, b"7z\xbc\xaf", repack("7z", "gzip")),
    (0, b"LZIP", repack("lzip", "gzip")),
    (0, b"hsqs", Format::FileSystem("squashfs")),
    (0, b"\x45\x3d\xcd\x28", Format::FileSystem("cramfs")),
    (0, b"-rom1fs-", Format::FileSystem("romfs")),
    (0x438, b"\x53\xef", Format::FileSystem("ext2, ext3 or ext4")),
    (0, b"QFI\xfb", Format::Disk("a qcow2 disk image")),
    (0x200, b"EFI PART", Format::Disk("a disk with a GPT")),
];

impl Format {
    /// The format of a file that begins with `head`.
    pub(in crate::guest) fn of(head: &[u8]) -> Self {
        let at = |offset: usize, magic: &[u8]| {
            head.get(offset..).is_some_and(|rest| rest.starts_with(magic))
        };
        let found = MAGICS.iter().find(|(offset, magic, _)| at(*offset, magic));
        match found {
            Some((_, _, format)) => *format,
            None if at(0, b"MZ") => of_efi(head),
            None if at(0x1fe, b"\x55\xaa") => Self::Disk("a disk with a boot sector"),
            None if is_text(head) => Self::Text,
            None => Self::Unknown,
        }
    }

    /// The format of an initramfs. Linux skips zeros before it (init/initramfs.c,
    /// `unpack_to_rootfs`).
    pub(in crate::guest) fn of_initrd(head: &[u8]) -> Self {
        let zeros = head.iter().take_while(|byte| **byte == 0).count();
        match Self::of(head) {
            Self::Unknown => Self::of(head.get(zeros..).unwrap_or_default()),
            format => format,
        }
    }
}

fn of_efi(head: &[u8]) -> Format {
    let is_uki = head.windows(UKI_SECTION.len()).any(|name| name == UKI_SECTION);
    if is_uki { Format::Uki } else { Format::Efi }
}

fn is_text(head: &[u8]) -> bool {
    let is_readable = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~');
    !head.is_empty() && head.iter().all(is_readable)
}
