//! Why a file is not a kernel that this VMM boots, and the command that remedies it. Pure.

use std::path::Path;

use crate::guest::boot::format::{Compression, Format};

const IMAGE: &str = "give an arm64 Image (arch/arm64/boot/Image, or /boot/vmlinuz-* of Debian)";

/// The cause and the remedy for the file at `path`, which begins with `head`. `unclear` is the cause
/// if nothing better is known.
pub(super) fn refusal(path: &Path, head: &[u8], unclear: &str) -> (String, String) {
    let path = path.display();
    match Format::of(head) {
        Format::Compressed(Compression { name, .. }) => (
            format!("it is compressed with {name}"),
            format!(
                "if it is a kernel, unpack it first: {name} -dc {path} >Image; if it is an \
                 initramfs: --initrd {path}"
            ),
        ),
        Format::Cpio | Format::OldCpio => (
            "it is a cpio archive".to_owned(),
            format!("if it is an initramfs: --initrd {path}; {IMAGE}"),
        ),
        Format::BzImage => ("it is a kernel for x86".to_owned(), IMAGE.to_owned()),
        Format::Foreign(kind) if kind != "arm64" => {
            (format!("it is a kernel for {kind}"), IMAGE.to_owned())
        }
        Format::Elf => (
            "it is an ELF file".to_owned(),
            format!("{IMAGE}; if it is a vmlinux: objcopy -O binary {path} Image"),
        ),
        Format::Uki => (
            "it is a unified kernel image (UKI), which needs an EFI firmware".to_owned(),
            format!(
                "take the kernel out of it: objcopy -O binary --only-section=.linux {path} kernel"
            ),
        ),
        Format::Disk(kind) | Format::FileSystem(kind) => (
            format!("it is {kind}"),
            format!("a guest's disk is an assigned device (--vfio); {IMAGE}"),
        ),
        Format::Text => ("it is a text".to_owned(), IMAGE.to_owned()),
        Format::Efi | Format::Unknown | Format::Foreign(_) => {
            (unclear.to_owned(), format!("{IMAGE}; to see what it is: file {path}"))
        }
    }
}
