//! Attaches a device to a VM of KVM's, uses it a little as a guest would, and detaches it; again
//! and again. Says what the process holds, and what the kernel holds for it, early on and at the
//! end: the same, or it fails.
//!
//! ```console
//! # cargo run --release --features kvm --example attach -- 0000:01:00.0 200
//! ```
//!
//! The device is bound to vfio-pci, and is one with MSI-X whose table lies in BAR0, such as an
//! NVMe. With `iommufd` as a third argument the device is used by iommufd.
#![allow(clippy::arithmetic_side_effects, reason = "a program that overflows fails")]

use std::error::Error;
use std::sync::Arc;
use std::{env, fs};

use kvm_ioctls::Kvm;
use vfio_passthrough::host::HostMemory;
use vfio_passthrough::kvm::{KvmHost, KvmLink};
use vfio_passthrough::{
    BarIndex, IommuContext, Iova, PassthroughFunction, PciAddress, ResetPolicy,
};
use vm_memory::{GuestAddress, GuestMemoryRegion, GuestRegionMmap};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What is set up once, on first use, is there after so many.
const WARM: u32 = 5;
/// The allocator's reserve may differ by this.
const SLACK_KIB: u64 = 256;
const RAM: usize = 16 << 20;
const BAR0: u64 = 0xe000_0000;
/// RAM, and the areas of BAR0 before and after the table. One that is not given back is missed at
/// once.
const SLOTS: u32 = 3;
const VECTORS: u32 = 2;

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let usage = "attach DEVICE TIMES [iommufd]";
    let device: PciAddress = arguments.next().ok_or(usage)?.parse()?;
    let times: u32 = arguments.next().ok_or(usage)?.parse()?;
    let open = match arguments.next().as_deref() {
        None => IommuContext::open,
        Some("iommufd") => IommuContext::open_iommufd,
        Some(_) => return Err(usage.into()),
    };
    let vm = Arc::new(Kvm::new()?.create_vm()?);
    vm.create_irq_chip()?;
    let host = KvmHost::new(vm, 0..SLOTS, 24..24 + VECTORS);
    // A VM has one such device for all its life.
    let link = host.link()?;
    let mut early = None;
    for time in 0..times {
        if time == WARM {
            early = Some(Held::now()?);
        }
        attach(open()?, device, &host, &link)?;
    }
    let (early, late) = (early.ok_or("more than 5 times, please")?, Held::now()?);
    println!("after {WARM}: {early:?}");
    println!("after {times}: {late:?}");
    match late.is_no_more_than(&early) {
        true => Ok(()),
        false => Err("something is held that was not before".into()),
    }
}

/// From the device's open to the last file's close.
fn attach(
    container: IommuContext,
    address: PciAddress,
    host: &KvmHost,
    link: &Arc<KvmLink>,
) -> Result<()> {
    container.link(link.clone())?;
    let device = container.open_device(address)?;
    let function =
        PassthroughFunction::new(address, device, &host.services(), ResetPolicy::Required)?;
    let ram = Arc::new(GuestRegionMmap::<()>::from_range(GuestAddress(0), RAM, None)?);
    let memory: Arc<dyn HostMemory> = ram.clone();
    let slot = host.memory().place(ram.start_addr().0, memory.clone())?;
    let mappings = container.dma().map_all([(Iova(0), memory)])?;
    let _ = function.config_write(0x10, &u32::try_from(BAR0)?.to_le_bytes());
    let _ = function.config_write(0x04, &6_u16.to_le_bytes());
    turn_vectors_on(&function)?;
    function.shutdown()?;
    drop((mappings, slot));
    Ok(())
}

/// Finds MSI-X as a guest does (PCIe 6.0, 7.7.2), and has all of its first vectors delivered.
fn turn_vectors_on(function: &PassthroughFunction) -> Result<()> {
    let read = |offset: u16| {
        let mut data = [0; 4];
        function.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    };
    let mut capability = u16::try_from(read(0x34) & 0xfc)?;
    while read(capability) & 0xff != 0x11 {
        capability = u16::try_from(read(capability) >> 8 & 0xfc)?;
        if capability == 0 {
            return Err("the device has no MSI-X".into());
        }
    }
    let table = read(capability + 4);
    if table & 7 != 0 {
        return Err("its MSI-X table is in another BAR than BAR0".into());
    }
    let bar = BarIndex::new(0).ok_or("there is a BAR0")?;
    for vector in 0..VECTORS {
        let entry = u64::from((table & !7) + vector * 16);
        function.bar_write(bar, entry, &0xfee0_0000_u64.to_le_bytes());
        function.bar_write(bar, entry + 8, &(0x40 + vector).to_le_bytes());
        function.bar_write(bar, entry + 12, &0_u32.to_le_bytes());
    }
    let _ = function.config_write(capability + 2, &0x8000_u16.to_le_bytes());
    Ok(())
}

/// What is held of the kernel.
#[derive(Debug)]
struct Held {
    fds: usize,
    mappings: usize,
    resident_kib: u64,
    locked_kib: u64,
    /// Of all processes: pages pinned for DMA, since Linux 5.7.
    pinned_pages: u64,
}

impl Held {
    fn now() -> Result<Self> {
        // Root may have the kernel sum its counters up, which each CPU keeps for itself.
        let _ = fs::read("/proc/sys/vm/stat_refresh");
        let (status, vmstat) =
            (fs::read_to_string("/proc/self/status")?, fs::read_to_string("/proc/vmstat")?);
        let number = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let word = line.and_then(|rest| rest.split_whitespace().next());
            word.and_then(|word| word.parse::<u64>().ok()).unwrap_or_default()
        };
        Ok(Self {
            fds: fs::read_dir("/proc/self/fd")?.count(),
            mappings: fs::read_to_string("/proc/self/maps")?.lines().count(),
            resident_kib: number(&status, "VmRSS:"),
            locked_kib: number(&status, "VmLck:"),
            pinned_pages: number(&vmstat, "nr_foll_pin_acquired")
                - number(&vmstat, "nr_foll_pin_released"),
        })
    }

    fn is_no_more_than(&self, early: &Self) -> bool {
        let exact = |held: &Self| (held.fds, held.mappings, held.locked_kib, held.pinned_pages);
        exact(self) == exact(early) && self.resident_kib <= early.resident_kib + SLACK_KIB
    }
}
