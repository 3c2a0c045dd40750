//! Prints a device as a guest would see it: config space, BARs and capabilities, as `lspci -xxx -v`
//! does in short.
//!
//! ```console
//! # cargo run --example lspci -- 0000:01:00.0
//! ```
//!
//! The device is bound to vfio-pci; opening it resets it. There is no VM, so the traits of [`host`]
//! do nothing here: this is the least that the library asks of its user.
//!
//! [`host`]: vfio_passthrough::host
#![allow(clippy::arithmetic_side_effects, reason = "a program that overflows fails")]

use std::env;
use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use vfio_passthrough::backend::Device;
use vfio_passthrough::host::{
    HostMemory, IntxConnection, IntxLine, MemorySlots, MsiMessage, MsiRouter, MsiVectors,
};
use vfio_passthrough::pci::bar::{Bar, BarKind};
use vfio_passthrough::pci::caps;
use vfio_passthrough::{IommuContext, PassthroughFunction, PciAddress, ResetPolicy, VmmServices};
use vmm_sys_util::eventfd::EventFd;

fn main() -> ExitCode {
    match run() {
        Ok(line) => {
            println!("ok: {line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("lspci: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String, Box<dyn Error>> {
    let argument = env::args().nth(1).ok_or("usage: lspci ADDRESS, such as 0000:01:00.0")?;
    let address = argument.parse()?;
    // The group of the device is attached to a container, and the device is opened.
    let device = IommuContext::open()?.open_device(address)?;
    show(address, device)
}

/// Makes a function of an opened device, and prints what it presents.
pub fn show(address: PciAddress, device: Arc<dyn Device>) -> Result<String, Box<dyn Error>> {
    let nobody = Arc::new(Nobody);
    let services =
        VmmServices { slots: nobody.clone(), msi: nobody.clone(), intx: Some(nobody), p2p: None };
    let function = PassthroughFunction::new(address, device, &services, ResetPolicy::IfPossible)?;
    let id = read(&function, 0);
    let class = read(&function, 8);
    let (vendor, product) = (id & 0xffff, id >> 16);
    println!(
        "{address} {:04x}: {vendor:04x}:{product:04x} (rev {:02x})",
        class >> 16,
        class & 0xff
    );
    function.bars().iter().for_each(show_bar);
    let count = show_capabilities(&function);
    show_bytes(&function);
    // Dropping the function does the same, and logs what fails.
    function.shutdown()?;
    Ok(format!("{address} has {count} capabilities; BARs: {}", function.bars().len()))
}

/// Reads config space as a guest does, 4 bytes at a time.
fn read(function: &PassthroughFunction, offset: u16) -> u32 {
    let mut data = [0; 4];
    function.config_read(offset, &mut data);
    u32::from_le_bytes(data)
}

/// The VMM gives each BAR an address; here none has one.
fn show_bar(bar: &Bar) {
    let kind = match bar.kind {
        BarKind::Io => "I/O ports",
        BarKind::Memory32 => "memory, 32-bit",
        BarKind::Memory64 => "memory, 64-bit",
        BarKind::Rom => "expansion ROM",
    };
    let prefetchable = if bar.prefetchable { ", prefetchable" } else { "" };
    println!("\t{}: {kind}{prefetchable}, {:#x} bytes", bar.index, bar.size);
}

/// Prints both lists of capabilities. The library has hidden those that a guest must not use.
fn show_capabilities(function: &PassthroughFunction) -> usize {
    let standard = caps::standard(read(function, 0x34).to_le_bytes()[0], |offset| {
        read(function, offset).to_le_bytes().first_chunk().copied().map_or(0, u16::from_le_bytes)
    });
    for capability in &standard.found {
        println!("\t[{:02x}] {}", capability.offset, standard_name(capability.id));
    }
    let extended = caps::extended(|offset| read(function, offset));
    for capability in &extended.found {
        let (offset, version) = (capability.offset, capability.version);
        println!("\t[{offset:03x} v{version}] {}", extended_name(capability.id));
    }
    standard.found.len() + extended.found.len()
}

fn show_bytes(function: &PassthroughFunction) {
    for line in (0..0x100).step_by(16) {
        let words = (line..line + 16).step_by(4).map(|offset| read(function, offset));
        let bytes = words.flat_map(u32::to_le_bytes).map(|byte| format!(" {byte:02x}"));
        println!("{line:02x}:{}", bytes.collect::<String>());
    }
}

/// PCI Code and ID Assignment 1.11, section 2.
fn standard_name(id: u8) -> String {
    let name = match id {
        0x01 => "Power Management",
        0x03 => "Vital Product Data",
        0x05 => "MSI",
        0x07 => "PCI-X",
        0x09 => "Vendor Specific",
        0x0d => "Subsystem ID",
        0x10 => "PCI Express",
        0x11 => "MSI-X",
        0x12 => "Serial ATA",
        0x13 => "Advanced Features",
        0x14 => "Enhanced Allocation",
        _ => return format!("capability {id:#04x}"),
    };
    name.to_owned()
}

/// PCI Code and ID Assignment 1.11, section 3.
fn extended_name(id: u16) -> String {
    let name = match id {
        0x00 => "Null",
        0x01 => "Advanced Error Reporting",
        0x02 => "Virtual Channel",
        0x03 => "Device Serial Number",
        0x04 => "Power Budgeting",
        0x0b => "Vendor Specific",
        0x0d => "Access Control Services",
        0x0e => "Alternative Routing-ID",
        0x0f => "Address Translation Services",
        0x10 => "Single Root I/O Virtualization",
        0x15 => "Resizable BAR",
        0x17 => "TPH Requester",
        0x18 => "Latency Tolerance Reporting",
        0x19 => "Secondary PCI Express",
        0x1b => "Process Address Space ID",
        0x1e => "L1 PM Substates",
        0x1f => "Precision Time Measurement",
        0x25 => "Data Link Feature",
        0x26 => "Physical Layer 16.0 GT/s",
        0x27 => "Lane Margining at the Receiver",
        _ => return format!("extended capability {id:#06x}"),
    };
    name.to_owned()
}

/// The VMM of nobody. Nothing of it is called, since nobody enables the function's memory or its
/// interrupts.
struct Nobody;

fn unsupported<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

impl MemorySlots for Nobody {
    unsafe fn map(&self, _: u64, _: &dyn HostMemory) -> io::Result<u32> {
        unsupported()
    }

    fn unmap(&self, _: u32, _: u64, _: &dyn HostMemory) -> io::Result<()> {
        unsupported()
    }
}

impl IntxLine for Nobody {
    fn connect(&self, _: u8) -> io::Result<Box<dyn IntxConnection>> {
        unsupported()
    }
}

impl MsiRouter for Nobody {
    fn allocate(&self, _: u16) -> io::Result<Box<dyn MsiVectors>> {
        Ok(Box::new(Self))
    }
}

impl MsiVectors for Nobody {
    fn trigger(&mut self, _: u16) -> io::Result<Arc<EventFd>> {
        unsupported()
    }

    fn update(&mut self, _: &[(u16, Option<MsiMessage>)]) -> io::Result<()> {
        unsupported()
    }
}
