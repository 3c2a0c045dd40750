//! Places the initramfs in guest RAM and loads it.

use resources::{AddressRange, Layout};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::format::{Compression, Format, HEAD};
use super::mib;
use crate::error::Error;
use crate::guest::arch::Kernel;
use crate::host::files::Opened;

/// Loads the initramfs at the highest address that the kernel accepts, and logs what is wrong with
/// its content.
pub(in crate::guest) fn load(
    image: &Opened,
    memory: &GuestMemoryMmap,
    layout: &Layout,
    kernel: &Kernel,
) -> Result<AddressRange, Error> {
    let mut file = image.rewound()?;
    let size = image.size()?;
    let place = AddressRange::new(place(size, kernel, layout)?, size);
    let start = GuestAddress(place.start);
    let bytes = usize::try_from(size).map_err(|e| image.failed(std::io::Error::other(e)))?;
    memory
        .read_exact_volatile_from(start, &mut file, bytes)
        .map_err(|error| image.shrunk(size).unwrap_or_else(|| image.failed(io_error(error))))?;
    let mut head = vec![0; bytes.min(HEAD)];
    memory.read_slice(&mut head, start)?;
    if let Some(why) = doubt(&head) {
        image.warn_once(&why);
    }
    Ok(place)
}

/// The highest address for the initramfs in one region of RAM. Below the limit of older kernels if
/// it fits there: a kernel that takes it above 4 GiB need not know of it then.
pub(in crate::guest) fn place(size: u64, kernel: &Kernel, layout: &Layout) -> Result<u64, Error> {
    let low = AddressRange::between(kernel.end(), kernel.initrd_limit());
    let any = AddressRange::between(kernel.end(), u64::MAX);
    let above = kernel.takes_high_initrd();
    let found = highest(size, low, layout);
    let found = found.or_else(|| highest(size, any, layout).filter(|_| above));
    found.ok_or_else(|| too_large(size, kernel, layout, if above { any } else { low }))
}

/// The highest place in `usable`.
fn highest(size: u64, usable: AddressRange, layout: &Layout) -> Option<u64> {
    let pieces = layout.ram.iter().map(|range| range.intersection(&usable));
    pieces.rev().find_map(|piece| {
        let start = piece.end().checked_sub(size)? & !0xfff;
        (start >= piece.start && !piece.is_empty()).then_some(start)
    })
}

/// More RAM helps if the kernel takes the initramfs at each address, or while RAM ends below the
/// kernel's limit.
fn too_large(size: u64, kernel: &Kernel, layout: &Layout, usable: AddressRange) -> Error {
    let pieces = layout.ram.iter().map(|range| range.intersection(&usable).size);
    let (needs, has) = (mib(size), pieces.max().unwrap_or(0) >> 20);
    let end = layout.ram.last().map_or(0, AddressRange::end);
    if kernel.takes_high_initrd() || end < kernel.initrd_limit() {
        let least = mib(kernel.end().saturating_add(size)).next_multiple_of(2);
        return Error::DoesNotFit { what: "the initrd", needs, has, least };
    }
    let remedy = kernel.initrd_remedy();
    Error::InitrdTooHigh { needs, has, limit: kernel.initrd_limit() >> 20, remedy }
}

/// What is wrong with an initramfs that begins with `head`. It is no error: a kernel other than
/// Linux takes what it wants.
fn doubt(head: &[u8]) -> Option<String> {
    const KNOWN: &str = "Linux unpacks cpio archives, plain or compressed with gzip, bzip2, lzma, \
                         xz, lzop, lz4 or zstd";
    Some(match Format::of_initrd(head) {
        Format::Cpio | Format::FileSystem(_) => return None,
        Format::Compressed(Compression { repack: None, .. }) => return None,
        Format::Compressed(Compression { name, repack: Some(how) }) => {
            format!("Linux does not unpack this form of {name}; compress it with: {how}")
        }
        Format::OldCpio => {
            "Linux unpacks only the form 'newc' of cpio archives; make it with: cpio \
                            -o -H newc"
                .to_owned()
        }
        Format::BzImage | Format::Elf | Format::Uki | Format::Foreign(_) => {
            format!("this seems to be a kernel, which --kernel takes; {KNOWN}")
        }
        _ => format!("Linux will not unpack it: its format is unknown; {KNOWN}"),
    })
}

/// Extracts the errno from a failed read into guest memory.
fn io_error(error: GuestMemoryError) -> std::io::Error {
    match error {
        GuestMemoryError::IOError(error) => error,
        other => std::io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first bytes of a file, and a part of the warning; `None` for what Linux unpacks.
    #[test]
    fn warns_of_an_initramfs_that_linux_does_not_unpack() {
        let ext4 = [vec![0; 0x438], vec![0x53, 0xef]].concat();
        let padded = [vec![0; 512], b"070701".to_vec()].concat();
        let bzimage = [vec![1; 0x202], b"HdrS".to_vec()].concat();
        let cases: [(&[u8], Option<&str>); 24] = [
            (b"070701", None),
            (b"070702", None),
            (&padded, None),
            (b"\x1f\x8b\x08", None),
            (b"BZh9", None),
            (b"\x5d\x00\x00\x80", None),
            (b"\xfd7zXZ\x00\x00\x01", None),
            (b"\xfd7zXZ\x00\x00\x00", None),
            (b"\xfd7zXZ\x00\x00\x04", Some("xz --check=crc32")),
            (b"\x89LZO\x00", None),
            (b"\x02\x21\x4c\x18", None),
            (b"\x04\x22\x4d\x18", Some("lz4 -l")),
            (b"\x28\xb5\x2f\xfd", None),
            (&ext4, None),
            (b"hsqs", None),
            (b"070707", Some("cpio -o -H newc")),
            (b"\xc7\x71", Some("cpio -o -H newc")),
            (b"PK\x03\x04", Some("compress it with: gzip")),
            (&bzimage, Some("--kernel")),
            (b"\x7fELF", Some("--kernel")),
            (b"QFI\xfb", Some("unknown")),
            (b"#!/bin/sh", Some("unknown")),
            (&[0; 512], Some("unknown")),
            (b"\xff\xfe", Some("unknown")),
        ];
        for (head, part) in cases {
            let found = doubt(head);
            assert_eq!(found.is_some(), part.is_some(), "{head:x?}: {found:?}");
            assert!(found.unwrap_or_default().contains(part.unwrap_or_default()), "{head:x?}");
        }
    }
}
