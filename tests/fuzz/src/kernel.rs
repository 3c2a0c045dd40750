//! Target `kernel`: malformed kernel images, initramfs and command lines.

use std::io::Write;

use resources::{AddressRange, Layout};
use vm_memory::{Bytes, GuestAddress};
use vmm::{Boot, Error, Kernel, Opened, Platform, Ram};

use crate::input::Input;

const RAM: u64 = 32 << 20;
/// The guest physical address of the command line.
const CMDLINE: u64 = 0x2_0000;

/// An open file that contains `bytes`; `None` if the VMM refuses it, because it is empty.
fn file(bytes: &[u8]) -> Option<Opened> {
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm")
        .or_else(|_| tempfile::NamedTempFile::new())
        .unwrap();
    file.write_all(bytes).unwrap();
    // The file is deleted when `file` is dropped; the open file keeps the contents.
    Opened::open("file", file.path(), RAM).ok()
}

/// The error of a refused file says what to do.
fn assert_has_remedy(error: &Error) {
    let is_refused = matches!(error, Error::NotAKernel { .. } | Error::DoesNotFit { .. });
    let text = error.to_string();
    assert!(!is_refused || text.contains("\n  "), "{text}");
}

pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let kind = input.u8();
    let cmdline = String::from_utf8_lossy(&input.run()).repeat(1 + usize::from(kind & 0xf));
    let initrd = file(&input.run().repeat(1 + usize::from(kind >> 4) * 64));
    let Some(image) = file(input.0) else {
        return;
    };
    let layout = Layout { ram: vec![AddressRange::new(0, RAM)], ..Layout::default() };
    let ram = Ram::new(&layout.ram).unwrap();
    let load = if kind & 1 == 0 { Kernel::load } else { Kernel::load_again };
    let kernel = match load(&image, ram.memory(), &layout) {
        Ok(kernel) => kernel,
        Err(error) => return assert_has_remedy(&error),
    };
    let platform = Platform { cpus: kind.max(1), slots: vec![1, 2], hot_plug: kind % 2 == 0 };
    let boot = Boot {
        memory: ram.memory(),
        layout: &layout,
        platform: &platform,
        initrd: initrd.as_ref().filter(|_| kind & 2 != 0),
        pci_ports: kind & 4 != 0,
        cmdline: &cmdline,
    };
    if boot.prepare(&kernel).is_ok() {
        let mut written = vec![0; 0x10000];
        ram.memory().read_slice(&mut written, GuestAddress(CMDLINE)).unwrap();
        let end = written.iter().position(|byte| *byte == 0).expect("the command line ends");
        let text = String::from_utf8_lossy(&written[..end]);
        assert!(text.starts_with(vmm::DEFAULT_CMDLINE), "{text}");
    }
}
