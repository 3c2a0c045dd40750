//! Loads an arm64 Image (Documentation/arch/arm64/booting.rst).

use std::os::unix::fs::FileExt;

use linux_loader::loader::pe::PE;
use resources::Layout;
use vm_memory::GuestMemoryMmap;

use super::refusal::refusal;
use crate::error::Error;
use crate::guest::boot::format::HEAD;
use crate::guest::boot::{loader, mib};
use crate::host::files::Opened;

/// Bytes at the start of RAM for the device tree, which may have so many. The kernel is after them,
/// and wants this alignment.
const TREE_SIZE: u64 = 2 << 20;
/// Offsets of the header's fields, and its magic.
const TEXT_OFFSET: usize = 8;
const IMAGE_SIZE: usize = 16;
const MAGIC: (usize, &[u8]) = (0x38, b"ARM\x64");

/// A kernel in guest RAM.
#[derive(Debug)]
pub struct Kernel {
    tree: u64,
    start: u64,
    end: u64,
}

impl Kernel {
    /// Loads the kernel into guest RAM.
    pub fn load(image: &Opened, memory: &GuestMemoryMmap, layout: &Layout) -> Result<Self, Error> {
        let low = layout.ram.first().copied().unwrap_or_default();
        let size = image.size()?;
        let head = head(image);
        let header = Header::of(&head).ok_or_else(|| refused(image, &head, "it has no header"))?;
        let kernel = header.kernel(low.start, size);
        let (needs, has) = (mib(kernel.end.saturating_sub(low.start)), low.size >> 20);
        if kernel.end > low.end() {
            return Err(Error::DoesNotFit { what: "the kernel", needs, has, least: needs });
        }
        let base = low.start.saturating_add(TREE_SIZE);
        loader::load::<PE>(memory, Some(base), &mut image.file())
            .map_err(|why| image.shrunk(size).unwrap_or_else(|| refused(image, &head, &why)))?;
        Ok(kernel)
    }

    /// Loads the kernel as [`load`](Self::load) does, into RAM that a kernel has used: an Image
    /// clears its own memory.
    pub fn load_again(
        image: &Opened,
        memory: &GuestMemoryMmap,
        layout: &Layout,
    ) -> Result<Self, Error> {
        Self::load(image, memory, layout)
    }

    /// The address of the device tree.
    pub(super) fn tree(&self) -> u64 {
        self.tree
    }

    /// The entry point.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// The first address after the kernel.
    pub(in crate::guest) fn end(&self) -> u64 {
        self.end
    }

    /// The exclusive limit of the initramfs's addresses: it is within 32 GiB of the kernel.
    pub(in crate::guest) fn initrd_limit(&self) -> u64 {
        self.tree.saturating_add(32 << 30)
    }

    /// Whether the initramfs may also be above the limit.
    pub(in crate::guest) fn takes_high_initrd(&self) -> bool {
        false
    }

    /// What helps if the initramfs does not fit below the kernel's limit.
    pub(in crate::guest) fn initrd_remedy(&self) -> &'static str {
        "make the initramfs smaller"
    }
}

/// The fields of an Image's header that its place depends on.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    /// The distance of the kernel from an address with its alignment.
    text_offset: u64,
    /// The memory that the kernel takes, from its start.
    image_size: u64,
}

impl Header {
    /// The header of an Image that begins with `head`.
    fn of(head: &[u8]) -> Option<Self> {
        let field = |offset: usize| head.get(offset..)?.first_chunk().copied();
        let is_image = head.get(MAGIC.0..)?.starts_with(MAGIC.1);
        let [text_offset, image_size] =
            [field(TEXT_OFFSET)?, field(IMAGE_SIZE)?].map(u64::from_le_bytes);
        is_image.then_some(match image_size {
            // Before Linux 3.17.
            0 => Self { text_offset: 0x8_0000, image_size },
            _ => Self { text_offset, image_size },
        })
    }

    /// The place of the kernel in RAM that begins at `ram`, with an Image of `size` bytes.
    fn kernel(&self, ram: u64, size: u64) -> Kernel {
        let start = ram.saturating_add(TREE_SIZE).saturating_add(self.text_offset);
        Kernel { tree: ram, start, end: start.saturating_add(self.image_size.max(size)) }
    }
}

/// The first bytes of the file.
fn head(image: &Opened) -> Vec<u8> {
    let mut head = vec![0; HEAD];
    let length = image.file().read_at(&mut head, 0).unwrap_or(0);
    head.truncate(length);
    head
}

fn refused(image: &Opened, head: &[u8], unclear: &str) -> Error {
    let path = image.path().to_owned();
    let (why, remedy) = refusal(&path, head, unclear);
    Error::NotAKernel { path, why, remedy }
}

#[cfg(test)]
mod tests;
