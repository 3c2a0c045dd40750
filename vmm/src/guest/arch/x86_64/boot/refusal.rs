//! Why a file is not a kernel that this VMM boots, and the command that remedies it. Pure.

use std::path::Path;

use super::addresses::HIGH_RAM;
use crate::guest::boot::format::{Compression, Format};

/// Boot protocol 2.12 has the 64-bit entry (Documentation/arch/x86/boot.rst, `xloadflags`).
const PROTOCOL: u16 = 0x20c;
/// Offsets in the setup header.
const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const XLOADFLAGS: usize = 0x236;

const BZIMAGE: &str = "give a bzImage (arch/x86/boot/bzImage, /boot/vmlinuz-*) or an ELF vmlinux \
                       built with CONFIG_PVH";

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The cause.
    pub(super) why: String,
    /// The remedy.
    pub(super) remedy: String,
    /// Nothing is known to be wrong with the file: perhaps RAM is too small for it.
    pub(super) is_kernel: bool,
}

impl Refusal {
    fn new(why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { why: why.into(), remedy: remedy.into(), is_kernel: false }
    }

    /// The refusal of a kernel with which nothing is known to be wrong.
    fn of_kernel(why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { is_kernel: true, ..Self::new(why, remedy) }
    }

    /// The refusal of a file that begins with `head` and has `size` bytes, with the remedy for the
    /// file at `path`. `unclear` is the cause if nothing better is known.
    pub(super) fn of(path: &Path, head: &[u8], size: u64, unclear: &str) -> Self {
        let path = path.display();
        match Format::of(head) {
            Format::BzImage => of_bzimage(head, size, unclear),
            Format::Elf => of_elf(head, size, unclear),
            Format::Compressed(Compression { name, .. }) => Self::new(
                format!("it is compressed with {name}"),
                format!(
                    "if it is a kernel, unpack it first: {name} -dc {path} >kernel; \
                     if it is an initramfs: --initrd {path}"
                ),
            ),
            Format::Cpio | Format::OldCpio => Self::new(
                "it is a cpio archive",
                format!("if it is an initramfs: --initrd {path}; {BZIMAGE}"),
            ),
            Format::Foreign(kind) => {
                Self::new(format!("it is a kernel for {kind}"), format!("{BZIMAGE}, for x86-64"))
            }
            Format::Uki => Self::new(
                "it is a unified kernel image (UKI), which needs an EFI firmware",
                format!(
                    "take the kernel out of it: objcopy -O binary --only-section=.linux {path} \
                     kernel; likewise .initrd"
                ),
            ),
            Format::Efi => Self::new("it is an EFI program without a Linux setup header", BZIMAGE),
            Format::Disk(kind) => of_disk(kind),
            Format::FileSystem(kind) => of_disk(&format!("a file system ({kind})")),
            Format::Text => Self::new("it is a text", BZIMAGE),
            Format::Unknown => {
                Self::new(unclear, format!("{BZIMAGE}; to see what it is: file {path}"))
            }
        }
    }
}

fn of_disk(kind: &str) -> Refusal {
    Refusal::new(
        format!("it is {kind}"),
        format!(
            "a guest's disk is an assigned device (--vfio); {BZIMAGE}, as the disk's /boot has"
        ),
    )
}

fn of_bzimage(head: &[u8], size: u64, unclear: &str) -> Refusal {
    let version = u16_at(head, VERSION);
    let whole = bzimage_size(byte_at(head, SETUP_SECTS), u32_at(head, SYSSIZE));
    let [minor, major] = version.to_le_bytes();
    if byte_at(head, LOADFLAGS) & 1 == 0 {
        Refusal::new("it is a zImage, the format of old kernels", BZIMAGE)
    } else if version < PROTOCOL {
        Refusal::new(
            format!("its boot protocol is {major}.{minor:02}, and 2.12 is needed"),
            "give a kernel of Linux 3.8 or newer",
        )
    } else if u16_at(head, XLOADFLAGS) & 1 == 0 {
        let why = "it has no 64-bit entry point: it is a 32-bit kernel";
        Refusal::new(why, "give a kernel built with CONFIG_64BIT")
    } else if whole > size {
        truncated(whole, size)
    } else {
        Refusal::of_kernel(unclear, BZIMAGE)
    }
}

/// The size that a bzImage's header specifies: the boot sector, the setup sectors (0 stands for
/// 4), and the protected-mode part in units of 16 bytes. Signatures may follow.
pub(super) fn bzimage_size(setup_sects: u8, syssize: u32) -> u64 {
    let sectors = if setup_sects == 0 { 4 } else { u64::from(setup_sects) };
    let setup = sectors.saturating_add(1).saturating_mul(512);
    u64::from(syssize).saturating_mul(16).saturating_add(setup)
}

fn truncated(whole: u64, size: u64) -> Refusal {
    Refusal::new(
        format!("it is truncated: it has {size} bytes, and its header specifies {whole}"),
        "copy or build it again: perhaps the disk was full",
    )
}

/// ELF: `EI_CLASS`, `EI_DATA`, `e_type`, `e_machine` (elf(5)).
fn of_elf(head: &[u8], size: u64, unclear: &str) -> Refusal {
    let x86_64 = format!("{BZIMAGE}, for x86-64");
    match (byte_at(head, 4), byte_at(head, 5), u16_at(head, 16), u16_at(head, 18)) {
        (1, ..) => Refusal::new("it is a 32-bit ELF file", x86_64),
        (_, 2, ..) => Refusal::new("it is a big-endian ELF file", x86_64),
        (_, _, 1, _) => Refusal::new("it is an object file, such as a kernel module", BZIMAGE),
        (_, _, _, machine) if machine != 62 => {
            let name = match machine {
                183 => "arm64".to_owned(),
                243 => "RISC-V".to_owned(),
                other => format!("machine {other}"),
            };
            Refusal::new(format!("it is an ELF file for {name}"), x86_64)
        }
        _ => match segments(head).map(|segment| segment.file_end).max() {
            Some(end) if end > size => truncated(end, size),
            None => Refusal::new("this ELF file has no segments", BZIMAGE),
            _ => Refusal::of_kernel(
                unclear,
                format!("{BZIMAGE}; a kernel without CONFIG_PVH also has a bzImage"),
            ),
        },
    }
}

/// A segment that is loaded.
struct Segment {
    file_end: u64,
    memory_end: u64,
}

/// The segments of an ELF file whose program headers are in `head`.
fn segments(head: &[u8]) -> impl Iterator<Item = Segment> + '_ {
    let start = usize::try_from(u64_at(head, 32)).unwrap_or(usize::MAX);
    let count = usize::from(u16_at(head, 56));
    let headers = head.get(start..).unwrap_or_default().chunks_exact(56).take(count);
    let loaded = headers.filter(|header| u32_at(header, 0) == 1);
    loaded.map(|header| Segment {
        file_end: u64_at(header, 8).saturating_add(u64_at(header, 32)),
        memory_end: u64_at(header, 24).saturating_add(u64_at(header, 40)),
    })
}

/// The end of the RAM that the kernel in a file takes before it unpacks itself; 0 if unknown.
pub(super) fn memory_end(head: &[u8], size: u64) -> u64 {
    match Format::of(head) {
        Format::BzImage => HIGH_RAM.saturating_add(size),
        Format::Elf => segments(head).map(|segment| segment.memory_end).max().unwrap_or(0),
        _ => 0,
    }
}

fn bytes_at<const N: usize>(head: &[u8], offset: usize) -> [u8; N] {
    head.get(offset..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

fn byte_at(head: &[u8], offset: usize) -> u8 {
    head.get(offset).copied().unwrap_or(0)
}

fn u16_at(head: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(bytes_at(head, offset))
}

fn u32_at(head: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes_at(head, offset))
}

fn u64_at(head: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes_at(head, offset))
}
