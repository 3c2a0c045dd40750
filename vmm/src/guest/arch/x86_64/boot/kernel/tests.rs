use std::io::Write;

use resources::AddressRange;

use super::*;
use crate::guest::memory::Ram;

const RAM: u64 = 64 << 20;

/// The error of a kernel file with this content, and the file's path.
fn refused(content: &[u8]) -> (String, String) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    let path = file.path().display().to_string();
    let layout = Layout { ram: vec![AddressRange::new(0, RAM)], ..Layout::default() };
    let ram = Ram::new(&layout.ram).unwrap();
    let image = Opened::open("kernel", file.path(), RAM).unwrap();
    (Kernel::load(&image, ram.memory(), &layout).unwrap_err().to_string(), path)
}

#[test]
fn names_a_file_that_is_no_kernel_and_the_accepted_formats() {
    for content in [b"#!/bin/sh\n", &[0; 100_000][..], b"\x7fELF, or so it says"] {
        let (text, _) = refused(content);
        assert!(text.contains("is not a kernel: ") && text.contains("bzImage"), "{text}");
    }
}

#[test]
fn an_elf_program_is_not_a_kernel() {
    let (text, _) = refused(&std::fs::read("/proc/self/exe").unwrap()[..4096]);
    assert!(text.contains("is not a kernel"), "{text}");
}

/// A bzImage of five sectors of setup code and 512 bytes.
struct BzImage {
    version: u16,
    loadflags: u8,
    xloadflags: u16,
    syssize: u32,
}

impl Default for BzImage {
    fn default() -> Self {
        Self { version: 0x20f, loadflags: 1, xloadflags: 1, syssize: 32 }
    }
}

impl BzImage {
    fn bytes(&self) -> Vec<u8> {
        let mut image = vec![0; 6 * 512];
        image[0x1f1] = 4;
        image[0x1f4..0x1f8].copy_from_slice(&self.syssize.to_le_bytes());
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&self.version.to_le_bytes());
        image[0x211] = self.loadflags;
        image[0x236..0x238].copy_from_slice(&self.xloadflags.to_le_bytes());
        image
    }
}

/// An ELF header and one segment of `file` bytes at 1 MiB that takes `memory` bytes.
fn elf(
    (class, data): (u8, u8),
    (kind, machine): (u16, u16),
    (file, memory): (u64, u64),
) -> Vec<u8> {
    let mut elf = vec![0; 64 + 56];
    elf[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, data, 1]);
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &kind.to_le_bytes());
    put(18, &machine.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &1_u16.to_le_bytes());
    put(64, &1_u32.to_le_bytes());
    put(64 + 24, &(1_u64 << 20).to_le_bytes());
    put(64 + 32, &file.to_le_bytes());
    put(64 + 40, &memory.to_le_bytes());
    elf
}

/// `magic` at `offset` of an otherwise empty file.
fn at(offset: usize, magic: &[u8]) -> Vec<u8> {
    [vec![0; offset], magic.to_vec(), vec![0; 600]].concat()
}

fn efi(section: &[u8]) -> Vec<u8> {
    [b"MZ", &[0; 254][..], section, &[0; 600]].concat()
}

const X86_64: (u16, u16) = (2, 62);
const SMALL: (u64, u64) = (8, 8);

/// A name, a content, and two parts of the error: the cause and the remedy, in which PATH is the
/// file's path.
type Case = (&'static str, Vec<u8>, &'static str, &'static str);

fn other_formats() -> Vec<Case> {
    let unpack =
        |name, magic: &[u8]| (name, at(0, magic), "it is compressed with ", "-dc PATH >kernel");
    let foreign = |name, offset, magic: &[u8], kind| (name, at(offset, magic), kind, "for x86-64");
    let disk = |name, offset, magic: &[u8], kind| (name, at(offset, magic), kind, "(--vfio)");
    vec![
        unpack("gzip", b"\x1f\x8b\x08"),
        unpack("bzip2", b"BZh9"),
        unpack("lzma", b"\x5d\0\0"),
        unpack("xz", b"\xfd7zXZ\0\0\x04"),
        unpack("lzop", b"\x89LZO"),
        unpack("lz4, legacy", b"\x02\x21\x4c\x18"),
        unpack("lz4", b"\x04\x22\x4d\x18"),
        unpack("zstd", b"\x28\xb5\x2f\xfd"),
        ("cpio", at(0, b"070701"), "it is a cpio archive", "--initrd PATH"),
        ("old cpio", at(0, b"070707"), "it is a cpio archive", "--initrd PATH"),
        foreign("arm64", 0x38, b"ARM\x64", "a kernel for arm64"),
        foreign("RISC-V", 0x38, b"RSC\x05", "a kernel for RISC-V"),
        foreign("zboot", 4, b"zimg", "a kernel for EFI"),
        foreign("uImage", 0, b"\x27\x05\x19\x56", "a kernel for U-Boot"),
        ("UKI", efi(b".linux\0\0"), "unified kernel image", "--only-section=.linux PATH kernel"),
        ("EFI program", efi(b".text\0\0\0"), "it is an EFI program", "give a bzImage"),
        disk("MBR", 0x1fe, b"\x55\xaa", "a disk with a boot sector"),
        disk("GPT", 0x200, b"EFI PART", "a disk with a GPT"),
        disk("qcow2", 0, b"QFI\xfb", "a qcow2 disk image"),
        disk("ext4", 0x438, b"\x53\xef", "a file system (ext2"),
        disk("squashfs", 0, b"hsqs", "a file system (squashfs)"),
        ("script", b"#!/bin/sh\n".to_vec(), "it is a text", "give a bzImage"),
        ("noise", at(0, b"\xff\xfe\xfd"), "Invalid bzImage", "file PATH"),
        ("one byte", vec![7], "is not a kernel", "file PATH"),
    ]
}

fn unusable_kernels() -> Vec<Case> {
    let bzimage = BzImage::default;
    vec![
        (
            "zImage",
            BzImage { loadflags: 0, ..bzimage() }.bytes(),
            "it is a zImage",
            "give a bzImage",
        ),
        (
            "old protocol",
            BzImage { version: 0x206, xloadflags: 0, ..bzimage() }.bytes(),
            "its boot protocol is 2.06, and 2.12 is needed",
            "Linux 3.8 or newer",
        ),
        (
            "32-bit bzImage",
            BzImage { xloadflags: 0, ..bzimage() }.bytes(),
            "no 64-bit entry point",
            "CONFIG_64BIT",
        ),
        (
            "truncated bzImage",
            BzImage { syssize: 33, ..bzimage() }.bytes(),
            "it is truncated: it has 3072 bytes, and its header specifies 3088",
            "copy or build it again",
        ),
        ("32-bit ELF", elf((1, 1), (2, 3), SMALL), "a 32-bit ELF file", "for x86-64"),
        ("big-endian ELF", elf((2, 2), X86_64, SMALL), "a big-endian ELF file", "for x86-64"),
        ("arm64 ELF", elf((2, 1), (2, 183), SMALL), "an ELF file for arm64", "for x86-64"),
        ("s390 ELF", elf((2, 1), (2, 22), SMALL), "an ELF file for machine 22", "for x86-64"),
        ("module", elf((2, 1), (1, 62), SMALL), "an object file", "give a bzImage"),
        ("no PVH", elf((2, 1), X86_64, SMALL), "no PVH entry point", "also has a bzImage"),
        (
            "truncated ELF",
            elf((2, 1), X86_64, (500, 500)),
            "it is truncated: it has 120 bytes, and its header specifies 500",
            "copy or build it again",
        ),
    ]
}

#[test]
fn says_what_a_file_is_that_is_no_kernel_and_what_to_do() {
    for (name, content, why, remedy) in [other_formats(), unusable_kernels()].concat() {
        let (text, path) = refused(&content);
        assert!(text.starts_with(&format!("kernel {path} is not a kernel: ")), "{name}: {text}");
        assert!(text.contains(why), "{name}: no {why:?} in: {text}");
        let remedy = remedy.replace("PATH", &path);
        let last = text.split_once("\n  ").map_or("", |(_, last)| last);
        assert!(last.contains(&remedy), "{name}: no {remedy:?} in: {text}");
    }
}

#[test]
fn a_kernel_too_large_for_ram_is_told_from_a_broken_one() {
    let mut large = BzImage::default().bytes();
    large.resize(64 << 20, 0);
    let bzimage = refused(&large).0;
    let elf = refused(&elf((2, 1), X86_64, (8, 100 << 20))).0;
    for (text, needs, least) in [(bzimage, 65, 66), (elf, 101, 102)] {
        let expected = format!(
            "the kernel does not fit in guest RAM: it needs {needs} MiB, and only 64 MiB are free \
             for it\n  give the guest more RAM with --memory: {least}M at least"
        );
        assert_eq!(text, expected);
    }
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_named() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&BzImage::default().bytes()).unwrap();
    let image = Opened::open("kernel", file.path(), RAM).unwrap();
    file.as_file().set_len(1000).unwrap();
    let text = refusal(&image, (3072, RAM), "").to_string();
    assert!(text.contains("it had 3072 bytes, and has 1000 now\n  start the VMM when"), "{text}");
}
