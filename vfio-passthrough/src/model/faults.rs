//! Calls that fail where a test says so.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::alarms::Alarms;

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
    /// The VMM places a memory slot.
    PlaceSlot,
    /// The VMM removes a memory slot.
    RemoveSlot,
    /// The VMM changes the route of interrupts.
    Route,
    /// The VMM makes an eventfd for a vector.
    Eventfd,
    /// The VMM allocates vectors.
    AllocateVectors,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call returns this errno.
    Errno(i32),
    /// A read or write of a region ends after this number of bytes. Other calls ignore this fault.
    Short(usize),
}

/// The calls that fail, and the calls that were made.
#[derive(Debug, Default)]
pub struct Faults {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    made: BTreeMap<Call, u64>,
    planned: BTreeMap<(Call, u64), i32>,
    /// The calls of any kind that fail, by their numbers among all calls.
    injected: Option<(Range<u64>, Fault)>,
    /// The calls that failed as planned.
    failed: Vec<Call>,
    /// The calls since `trail` was called first.
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
    /// Makes the `nth` call from now on (0 is the next) fail with `errno`.
    pub fn fail(&self, call: Call, nth: u64, errno: i32) {
        let mut state = lock(&self.state);
        let nth = state.made.get(&call).copied().unwrap_or(0).saturating_add(nth);
        state.planned.insert((call, nth), errno);
    }

    /// Makes calls of any kind fail, by their numbers from now on (0 is the next).
    pub fn inject(&self, calls: Range<u64>, fault: Fault) {
        let mut state = lock(&self.state);
        let now = state.all_made();
        let calls = now.saturating_add(calls.start)..now.saturating_add(calls.end);
        state.injected = Some((calls, fault));
    }

    /// Makes no call fail any more.
    pub fn clear(&self) {
        let mut state = lock(&self.state);
        state.planned.clear();
        state.injected = None;
    }

    /// The number of calls of a kind, including failed ones.
    pub fn made(&self, call: Call) -> u64 {
        lock(&self.state).made.get(&call).copied().unwrap_or(0)
    }

    /// The number of calls of all kinds, including failed ones.
    pub fn all_made(&self) -> u64 {
        lock(&self.state).all_made()
    }

    /// The calls since `trail` was called last, in order. The first time it returns none.
    pub fn trail(&self) -> Vec<Call> {
        lock(&self.state).trail.replace(Vec::new()).unwrap_or_default()
    }

    /// The calls that failed as planned since `failed` was called last.
    pub fn failed(&self) -> Vec<Call> {
        std::mem::take(&mut lock(&self.state).failed)
    }

    /// What no program may cause, in words: DMA without a mapping or to memory that was freed, and
    /// device memory in a guest that the device does not decode. A [`Ledger`](super::Ledger) holds
    /// the alarms, too.
    pub fn alarms(&self) -> Vec<String> {
        lock(&self.state).alarms.raised.clone()
    }

    pub(super) fn with_alarms<T>(&self, act: impl FnOnce(&mut Alarms) -> T) -> T {
        act(&mut lock(&self.state).alarms)
    }

    /// Counts a call that moves no bytes, and fails it where a test says so.
    pub(super) fn pass(&self, call: Call) -> io::Result<()> {
        self.pass_bytes(call, |_| Ok(()))
    }

    /// As [`pass`](Self::pass), for a call that moves bytes; `short` moves the bytes of a short
    /// call.
    pub(super) fn pass_bytes(
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

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn errno(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}
