//! Loading the kernel: which kind it is, where it goes, how it is entered.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use resources::Layout;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::bzimage::ZeroPage;
use super::{HIGH_RAM, PAGE_TABLES, START_INFO, elf, linux, mib};
use crate::Error;
use crate::files::Opened;

/// The 64-bit entry is this far into a bzImage's protected-mode part (boot protocol, 64-bit).
const ENTRY_64: u64 = 0x200;

/// A kernel in guest RAM.
#[derive(Debug)]
pub enum Kernel {
    /// Entered by Linux's 64-bit boot protocol.
    Linux {
        /// The image's header, to be completed and handed over.
        zero_page: ZeroPage,
        /// Its end, as large as it says it becomes.
        end: u64,
    },
    /// Entered by the PVH protocol, in 32-bit mode.
    Pvh {
        /// The entry point.
        entry: u64,
        /// Its end.
        end: u64,
    },
}

/// How the first CPU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Long mode, with these page tables and the zero page in RSI.
    Long {
        /// Instruction pointer.
        rip: u64,
        /// The zero page.
        zero_page: u64,
        /// Page tables that map the first GiB to itself.
        page_tables: u64,
    },
    /// Protected mode without paging, with the start info in EBX.
    Protected {
        /// Instruction pointer.
        rip: u64,
        /// The start info.
        start_info: u64,
    },
}

impl Kernel {
    /// Reads the kernel straight into guest RAM.
    pub fn load(image: &Opened, memory: &GuestMemoryMmap, layout: &Layout) -> Result<Self, Error> {
        let file = image.file();
        let room = layout.ram.first().map_or(0, |low| low.end());
        let size = image.size()?;
        if size > room {
            return Err(Error::DoesNotFit {
                what: "the kernel",
                needs: mib(size),
                has: room >> 20,
            });
        }
        let mut magic = [0; 4];
        let is_elf = file.read_exact_at(&mut magic, 0).is_ok() && magic == elf::MAGIC;
        let loaded = if is_elf {
            load_elf(file, memory)
        } else {
            load_bzimage(file, size, memory)
        };
        let kernel = loaded.map_err(|why| Error::NotAKernel {
            path: image.path().to_owned(),
            why,
        })?;
        match kernel.end() > room {
            true => Err(Error::DoesNotFit {
                what: "the kernel",
                needs: mib(kernel.end()),
                has: room >> 20,
            }),
            false => Ok(kernel),
        }
    }

    /// As [`load`](Self::load), into RAM that a kernel has used: what an ELF file does not say is zero must
    /// be so (ELF, program header, `p_memsz`), and a loader of fresh RAM leaves it as it is.
    pub fn load_again(image: &Opened, memory: &GuestMemoryMmap, layout: &Layout) -> Result<Self, Error> {
        match Self::load(image, memory, layout)? {
            Self::Pvh { end, .. } => {
                clear(memory, HIGH_RAM..end)?;
                Self::load(image, memory, layout)
            }
            // It clears its own.
            linux => Ok(linux),
        }
    }

    /// The first address after the kernel.
    pub(super) fn end(&self) -> u64 {
        match self {
            Self::Linux { end, .. } | Self::Pvh { end, .. } => *end,
        }
    }

    /// The first address that an initramfs may not touch.
    pub(super) fn initrd_limit(&self) -> u64 {
        match self {
            Self::Linux { zero_page, .. } => zero_page.initrd_limit(),
            Self::Pvh { .. } => 1 << 32,
        }
    }

    /// The longest command line, without the final zero.
    pub(super) fn cmdline_limit(&self) -> usize {
        match self {
            Self::Linux { zero_page, .. } => zero_page.cmdline_limit() as usize,
            // x86 Linux's COMMAND_LINE_SIZE, which PVH has no field for.
            Self::Pvh { .. } => 2047,
        }
    }

    /// Writes what the entry needs and returns it.
    pub(super) fn entry(&self, memory: &GuestMemoryMmap) -> Result<Entry, Error> {
        match self {
            Self::Linux { .. } => {
                linux::write_page_tables(memory)?;
                Ok(Entry::Long {
                    rip: HIGH_RAM.saturating_add(ENTRY_64),
                    zero_page: START_INFO,
                    page_tables: PAGE_TABLES,
                })
            }
            Self::Pvh { entry, .. } => Ok(Entry::Protected {
                rip: *entry,
                start_info: START_INFO,
            }),
        }
    }
}

fn clear(memory: &GuestMemoryMmap, range: Range<u64>) -> Result<(), Error> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    for start in range.clone().step_by(ZEROS.len()) {
        let left = usize::try_from(range.end.saturating_sub(start)).unwrap_or(usize::MAX);
        let zeros = ZEROS.get(..left).unwrap_or(&ZEROS);
        memory.write_slice(zeros, GuestAddress(start))?;
    }
    Ok(())
}

fn load_bzimage(file: &File, size: u64, memory: &GuestMemoryMmap) -> Result<Kernel, String> {
    let zero_page = ZeroPage::of(file)?;
    let offset = zero_page.kernel_offset();
    let size = size.checked_sub(offset).ok_or("it ends within its setup code")?;
    copy(file, offset, size, memory, HIGH_RAM)?;
    let end = HIGH_RAM.saturating_add(size).max(zero_page.unpacked_end());
    Ok(Kernel::Linux { zero_page, end })
}

fn load_elf(file: &File, memory: &GuestMemoryMmap) -> Result<Kernel, String> {
    let segments = elf::segments(file)?;
    let entry = elf::pvh_entry(file, &segments)?.ok_or("this ELF file has no PVH entry point")?;
    let mut end = 0;
    for segment in segments.iter().filter(|segment| segment.is_load()) {
        copy(file, segment.offset, segment.file_size, memory, segment.gpa)?;
        end = end.max(segment.gpa.saturating_add(segment.memory_size));
    }
    Ok(Kernel::Pvh {
        entry: entry.into(),
        end,
    })
}

/// Copies `size` bytes of a file, from `offset` on, to `gpa`.
fn copy(mut file: &File, offset: u64, size: u64, memory: &GuestMemoryMmap, gpa: u64) -> Result<(), String> {
    if size == 0 {
        return Ok(());
    }
    let size = usize::try_from(size).map_err(|error| error.to_string())?;
    file.seek(SeekFrom::Start(offset))
        .map_err(|error| error.to_string())?;
    let copied = memory.read_exact_volatile_from(GuestAddress(gpa), &mut file, size);
    copied.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use resources::AddressRange;

    use super::*;
    use crate::memory::Ram;

    fn load(content: &[u8]) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let layout = Layout {
            ram: vec![AddressRange::new(0, 64 << 20)],
            ..Layout::default()
        };
        let ram = Ram::new(&layout.ram).unwrap();
        let image = Opened::open("kernel", file.path()).unwrap();
        Kernel::load(&image, ram.memory(), &layout)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn what_is_not_a_kernel_is_named_with_what_would_be() {
        for content in [&b""[..], b"#!/bin/sh\n", &[0; 100_000], b"\x7fELF, or so it says"] {
            let text = load(content);
            assert!(
                text.contains("is not a kernel: ") && text.contains("bzImage"),
                "{text}"
            );
        }
    }

    #[test]
    fn an_elf_program_is_not_a_kernel() {
        let text = load(&std::fs::read("/proc/self/exe").unwrap()[..4096]);
        assert!(text.contains("is not a kernel"), "{text}");
    }
}
