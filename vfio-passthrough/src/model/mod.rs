//! VFIO in memory: an IOMMU, devices and a guest's side, for tests without hardware, with failures
//! where a test wants them.
//!
//! [`PciDevice`] and [`Iommu`] implement the backend's traits by the calls that a VMM makes of the
//! kernel, on [`vfio_model`], which has Linux's rules and errnos. What this module adds is for
//! tests.
//!
//! A device is described by its config bytes, the sizes of its BARs and its interrupts
//! ([`PciDevice::new`]), and acts: it fires interrupts and does DMA. Its memory is decoded as its
//! command register and power state say. Any call can be made to fail ([`Faults`]). A test ends
//! with an empty [`Ledger`]: nothing is held, and nothing happened that never should
//! ([`Faults::alarms`]), or it says what.
//!
//! ```
//! use std::sync::Arc;
//! use vfio_passthrough::backend::IrqFlags;
//! use vfio_passthrough::model::{Faults, Guest, PciDevice};
//! use vfio_passthrough::{VmmServices, PassthroughFunction, ResetPolicy};
//!
//! let faults = Arc::new(Faults::default());
//! let device = Arc::new(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD)?);
//! let guest = Guest::new(faults);
//! let (address, policy) = ("01:00.0".parse()?, ResetPolicy::Required);
//! let function = PassthroughFunction::new(address, device, &guest.host(), policy)?;
//! let mut vendor = [0; 2];
//! function.config_read(0, &mut vendor);
//! assert_eq!(vendor, [0x36, 0x1b]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod alarms;
mod decoding;
mod dma;
mod guest;
mod iommu;
mod ledger;
mod messages;
mod opened;
mod pci;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use guest::Guest;
pub use iommu::Iommu;
pub use ledger::Ledger;
pub use pci::PciDevice;

use alarms::Alarms;

/// A call that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// `VFIO_IOMMU_MAP_DMA`.
    MapDma,
    /// `VFIO_IOMMU_UNMAP_DMA`.
    UnmapDma,
    /// `VFIO_IOMMU_GET_INFO`.
    IommuInfo,
    /// `VFIO_DEVICE_GET_REGION_INFO`.
    RegionInfo,
    /// `VFIO_DEVICE_GET_IRQ_INFO`.
    IrqInfo,
    /// A read of a region.
    Read,
    /// A write of a region.
    Write,
    /// `mmap` of a region.
    Mmap,
    /// `VFIO_DEVICE_SET_IRQS`.
    SetIrqs,
    /// `VFIO_DEVICE_RESET`.
    Reset,
    /// `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`.
    BusMembers,
    /// `VFIO_DEVICE_PCI_HOT_RESET`.
    ResetBus,
    /// The host VMM's memory slots: placing one.
    PlaceSlot,
    /// The host VMM's memory slots: removing one.
    RemoveSlot,
    /// The host VMM's routing of interrupts.
    Route,
    /// `eventfd` of a vector, by the host VMM.
    Eventfd,
    /// The host VMM's room for vectors.
    AllocateVectors,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// With this errno.
    Errno(i32),
    /// After so many bytes, where it is a read or a write of a region; other calls do not know it.
    Short(usize),
}

/// The calls that fail, and how many were made.
#[derive(Debug, Default)]
pub struct Faults {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    made: BTreeMap<Call, u64>,
    planned: BTreeMap<(Call, u64), i32>,
    /// Calls of whatever kind that fail, by the number that each has among all.
    injected: Option<(Range<u64>, Fault)>,
    /// The kind of each call that failed as planned.
    failed: Vec<Call>,
    /// The kind of each call, once somebody asked.
    trail: Option<Vec<Call>>,
    alarms: Alarms,
}

impl State {
    fn all_made(&self) -> u64 {
        self.made.values().copied().fold(0, u64::saturating_add)
    }

    fn next(&mut self, call: Call) -> Option<Fault> {
        let number = self.all_made();
        self.trail.iter_mut().for_each(|trail| trail.push(call));
        let made = self.made.entry(call).or_default();
        let nth = *made;
        *made = made.saturating_add(1);
        let injected = self.injected.as_ref().filter(|(calls, _)| calls.contains(&number));
        let injected = injected.map(|(_, fault)| *fault);
        let planned = self.planned.remove(&(call, nth)).map(Fault::Errno);
        let moves_bytes = matches!(call, Call::Read | Call::Write);
        planned.or(injected.filter(|fault| moves_bytes || matches!(fault, Fault::Errno(_))))
    }
}

impl Faults {
    /// The `nth` call from now on (0 is the next) fails with `errno`.
    pub fn fail(&self, call: Call, nth: u64, errno: i32) {
        let mut state = lock(&self.state);
        let nth = state.made.get(&call).copied().unwrap_or(0).saturating_add(nth);
        state.planned.insert((call, nth), errno);
    }

    /// These calls of all that are made from now on (0 is the next), of whatever kind, fail.
    pub fn inject(&self, calls: Range<u64>, fault: Fault) {
        let mut state = lock(&self.state);
        let now = state.all_made();
        let calls = now.saturating_add(calls.start)..now.saturating_add(calls.end);
        state.injected = Some((calls, fault));
    }

    /// No call fails any more, whatever was asked for before.
    pub fn clear(&self) {
        let mut state = lock(&self.state);
        state.planned.clear();
        state.injected = None;
    }

    /// How many of these calls were made, failed ones included.
    pub fn made(&self, call: Call) -> u64 {
        lock(&self.state).made.get(&call).copied().unwrap_or(0)
    }

    /// How many calls of all kinds were made, failed ones included.
    pub fn all_made(&self) -> u64 {
        lock(&self.state).all_made()
    }

    /// The calls since the last look, in order; none at the first look, with which it begins.
    pub fn trail(&self) -> Vec<Call> {
        lock(&self.state).trail.replace(Vec::new()).unwrap_or_default()
    }

    /// The calls that failed as planned since the last look.
    pub fn failed(&self) -> Vec<Call> {
        std::mem::take(&mut lock(&self.state).failed)
    }

    /// What no program may let happen, in words: DMA to what is not mapped or not there any more,
    /// and memory of a device in a guest while the device does not decode it. It is in a
    /// [`Ledger`], too.
    pub fn alarms(&self) -> Vec<String> {
        lock(&self.state).alarms.raised.clone()
    }

    fn with_alarms<T>(&self, act: impl FnOnce(&mut Alarms) -> T) -> T {
        act(&mut lock(&self.state).alarms)
    }

    /// A call that moves no bytes, or none yet.
    fn pass(&self, call: Call) -> io::Result<()> {
        self.pass_bytes(call, |_| Ok(()))
    }

    /// A call that moves bytes; `short` moves as many as one does that falls short.
    fn pass_bytes(
        &self,
        call: Call,
        short: impl FnOnce(usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut state = lock(&self.state);
        let Some(fault) = state.next(call) else {
            return Ok(());
        };
        state.failed.push(call);
        drop(state);
        match fault {
            Fault::Errno(number) => Err(errno(number)),
            Fault::Short(length) => short(length).and(Err(match call {
                Call::Read => io::ErrorKind::UnexpectedEof.into(),
                _ => io::ErrorKind::WriteZero.into(),
            })),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn errno(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// The room for a reply of an info ioctl, capabilities included.
const INFO_SIZE: u32 = 4096;

/// What an info ioctl answers, whose argument begins with `argsz`, flags and an index.
fn info_reply(index: u32, call: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<Vec<u8>> {
    let words = [INFO_SIZE, 0, index];
    let mut reply: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    reply.resize(INFO_SIZE as usize, 0);
    call(&mut reply)?;
    Ok(reply)
}
