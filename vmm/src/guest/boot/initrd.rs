//! Places the initramfs in guest RAM and loads it.

use resources::{AddressRange, Layout};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::format::{Compression, Format, HEAD};
use super::kernel::{Kernel, mib};
use crate::error::Error;
use crate::host::files::Opened;

/// Loads the initramfs at the highest address that the kernel accepts, and logs what is wrong with
/// its content.
pub(super) fn load(
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
fn place(size: u64, kernel: &Kernel, layout: &Layout) -> Result<u64, Error> {
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
    let remedy = match kernel {
        Kernel::Linux { .. } => "give a kernel built with CONFIG_RELOCATABLE",
        Kernel::Pvh { .. } => "give the bzImage of this kernel instead of its ELF file",
    };
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
    use crate::guest::layout::fixture::layout;
    use linux_loader::loader::bootparam::setup_header;

    fn pvh() -> Kernel {
        Kernel::Pvh { entry: 1 << 20, end: 16 << 20 }
    }

    /// A bzImage; `xloadflags` bit 1 says that it takes an initramfs above 4 GiB.
    fn bzimage(xloadflags: u16) -> Kernel {
        let header =
            setup_header { xloadflags, initrd_addr_max: 0x7fff_ffff, ..Default::default() };
        Kernel::Linux { header: Box::new(header), start: 1 << 20, end: 64 << 20 }
    }

    #[test]
    fn places_an_initrd_in_one_region_as_high_as_the_kernel_accepts() {
        let layout = layout("6G", &[(0x1000_0000, 0x101f_ffff), (0xb000_0000, 0xb000_0fff)]);
        // The regions: up to 256 MiB, 258 MiB to 2816 MiB, up to 3 GiB, and above 4 GiB,
        // which is too high.
        let cases = [
            (1 << 20, Some((3 << 30) - (1 << 20))),
            (1, Some((3 << 30) - 4096)),
            (1 << 30, Some((2816 << 20) - (1 << 30))),
            (3 << 30, None),
        ];
        for (size, expected) in cases {
            assert_eq!(place(size, &pvh(), &layout).ok(), expected, "{size:#x}");
        }
        let text = place(3 << 30, &pvh(), &layout).unwrap_err().to_string();
        assert!(
            text.contains("it needs 3072 MiB")
                && text.contains("below 4096 MiB, where 2558 MiB are free in one piece"),
            "{text}"
        );
    }

    #[test]
    fn a_bzimage_gets_it_below_its_limit_and_above_4_gib_only_if_it_does_not_fit() {
        let layout = layout("8G", &[]);
        let end = layout.ram.last().unwrap().end();
        for (size, expected) in [
            (1 << 30, (2 << 30) - (1 << 30)),
            (1_u64 << 31, end - (1_u64 << 31)),
            (4_u64 << 30, end - (4_u64 << 30)),
        ] {
            assert_eq!(place(size, &bzimage(3), &layout).ok(), Some(expected), "{size:#x}");
        }
        assert_eq!(place(1 << 30, &bzimage(1), &layout).ok(), Some(1 << 30));
    }

    /// RAM, kernel, size in MiB, and parts of the error.
    #[test]
    fn says_whether_more_ram_helps_and_how_much() {
        let more = |kernel| (kernel, "give the guest more RAM with --memory: ");
        let (high, low, elf) = (|| bzimage(3), || bzimage(1), pvh);
        for (ram, (kernel, advice), mib, figures) in [
            ("512M", more(high()), 600, "needs 600 MiB, and only 448 MiB are free"),
            ("512M", more(low()), 600, "needs 600 MiB, and only 448 MiB are free"),
            ("512M", more(elf()), 600, "needs 600 MiB, and only 496 MiB are free"),
            ("4G", more(high()), 3200, "needs 3200 MiB, and only 3008 MiB are free"),
            ("4G", (low(), "CONFIG_RELOCATABLE"), 2100, "2048 MiB, where 1984 MiB are free"),
            (
                "8G",
                (elf(), "the bzImage of this kernel"),
                3200,
                "4096 MiB, where 3056 MiB are free",
            ),
        ] {
            let text = place(mib << 20, &kernel, &layout(ram, &[])).unwrap_err().to_string();
            assert!(text.contains(advice) && text.contains(figures), "{ram} {mib}: {text}");
            let helps = !text.contains("more --memory does not help");
            assert_eq!(helps, advice.contains("--memory"), "{text}");
        }
        let text = place(600 << 20, &bzimage(3), &layout("512M", &[])).unwrap_err().to_string();
        assert!(text.ends_with("--memory: 664M at least"), "{text}");
    }

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
