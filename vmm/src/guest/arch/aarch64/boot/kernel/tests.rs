use std::io::Write;

use resources::AddressRange;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::guest::memory::Ram;

const GIB: u64 = 1 << 30;
const RAM: u64 = 64 << 20;

/// An Image with these fields, and a byte after its header.
fn image(text_offset: u64, image_size: u64) -> Vec<u8> {
    let mut image = vec![0; 65];
    image[8..16].copy_from_slice(&text_offset.to_le_bytes());
    image[16..24].copy_from_slice(&image_size.to_le_bytes());
    image[0x38..0x3c].copy_from_slice(b"ARM\x64");
    image[64] = 0xab;
    image
}

fn loaded(content: &[u8]) -> (Result<Kernel, Error>, Ram) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    let layout = Layout { ram: vec![AddressRange::new(GIB, RAM)], ..Layout::default() };
    let ram = Ram::new(&layout.ram).unwrap();
    let opened = Opened::open("kernel", file.path(), RAM).unwrap();
    (Kernel::load(&opened, ram.memory(), &layout), ram)
}

#[test]
fn loads_an_image_after_the_device_tree() {
    let (kernel, ram) = loaded(&image(0, 40 << 20));
    let kernel = kernel.unwrap();
    assert_eq!((kernel.tree(), kernel.start()), (GIB, GIB + (2 << 20)));
    assert_eq!(kernel.end(), GIB + (42 << 20));
    let last: u8 = ram.memory().read_obj(GuestAddress(kernel.start() + 64)).unwrap();
    assert_eq!(last, 0xab);
    let (again, _) = loaded(&image(0x1000, 0x10));
    let again = again.unwrap();
    assert_eq!(again.start(), GIB + (2 << 20) + 0x1000);
    assert_eq!(again.end() - again.start(), 65, "the file is larger than the header says");
}

#[test]
fn an_old_image_has_neither_size_nor_offset() {
    let (kernel, _) = loaded(&image(0x1234, 0));
    assert_eq!(kernel.unwrap().start(), GIB + (2 << 20) + 0x8_0000);
}

#[test]
fn a_kernel_that_needs_more_ram_says_how_much() {
    for size in [63 << 20, u64::MAX] {
        let error = loaded(&image(0, size)).0.unwrap_err();
        assert!(matches!(error, Error::DoesNotFit { has: 64, .. }), "{error}");
    }
}

#[test]
fn names_a_file_that_is_no_kernel_and_the_remedy() {
    let bzimage = [vec![0; 0x202], b"HdrS".to_vec()].concat();
    let zboot = b"MZ\0\0zimg".to_vec();
    let cases: [(&[u8], &str, &str); 8] = [
        (b"\x1f\x8b\x08", "compressed with gzip", "gzip -dc /"),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd", "zstd -dc /"),
        (b"070701", "a cpio archive", "--initrd /"),
        (&bzimage, "a kernel for x86", "arm64 Image"),
        (&zboot, "a kernel for EFI (zboot)", "arm64 Image"),
        (b"\x7fELF", "an ELF file", "objcopy -O binary /"),
        (b"#!/bin/sh", "a text", "arm64 Image"),
        (&[0; 100], "it has no header", "file /"),
    ];
    for (content, why, remedy) in cases {
        let text = loaded(content).0.unwrap_err().to_string();
        assert!(text.contains(" is not a kernel: ") && text.contains(why), "{text}");
        assert!(text.contains(remedy), "{text}");
    }
}
