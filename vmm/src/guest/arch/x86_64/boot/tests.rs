//! Where each kind of kernel takes its initramfs.

use linux_loader::loader::bootparam::setup_header;

use super::Kernel;
use crate::guest::boot::initrd::place;
use crate::guest::layout::fixture::layout;

fn pvh() -> Kernel {
    Kernel::Pvh { entry: 1 << 20, end: 16 << 20 }
}

/// A bzImage; `xloadflags` bit 1 says that it takes an initramfs above 4 GiB.
fn bzimage(xloadflags: u16) -> Kernel {
    let header = setup_header { xloadflags, initrd_addr_max: 0x7fff_ffff, ..Default::default() };
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
        ("8G", (elf(), "the bzImage of this kernel"), 3200, "4096 MiB, where 3056 MiB are free"),
    ] {
        let text = place(mib << 20, &kernel, &layout(ram, &[])).unwrap_err().to_string();
        assert!(text.contains(advice) && text.contains(figures), "{ram} {mib}: {text}");
        let helps = !text.contains("more --memory does not help");
        assert_eq!(helps, advice.contains("--memory"), "{text}");
    }
    let text = place(600 << 20, &bzimage(3), &layout("512M", &[])).unwrap_err().to_string();
    assert!(text.ends_with("--memory: 664M at least"), "{text}");
}
