//! A device and its host: what the host tells of it, and whether it has it back.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use vmm_sys_util::eventfd::EventFd;

use super::decoding::Hold;
use super::{PciDevice, errno, lock};
use crate::backend::{IrqFlags, IrqInfo, SetIrqs};
use crate::irq::IrqIndex;

/// Who is told, and who holds the device.
#[derive(Default)]
pub(super) struct Events {
    heard: Mutex<BTreeMap<u32, Arc<EventFd>>>,
    /// How often the host has asked for the device.
    requests: AtomicU64,
    closed: AtomicBool,
    /// What its mappings hold.
    mappings: Mutex<Vec<Weak<Hold>>>,
}

impl Events {
    /// As vfio-pci describes them of a PCI Express function.
    pub fn infos() -> impl Iterator<Item = IrqInfo> {
        [IrqIndex::Error, IrqIndex::Request].into_iter().map(|kind| IrqInfo {
            index: kind.number(),
            flags: IrqFlags::EVENTFD | IrqFlags::NORESIZE,
            count: 1,
        })
    }

    /// `ENODEV` once the device is closed.
    pub fn check_open(&self) -> io::Result<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(errno(libc::ENODEV)),
            false => Ok(()),
        }
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        lock(&self.heard).clear();
    }

    /// What a mapping holds of the device.
    pub fn held(&self, hold: &Arc<Hold>) {
        lock(&self.mappings).push(Arc::downgrade(hold));
    }

    /// A call that is for an event: the rules of vfio_pci_set_ctx_trigger_single.
    pub fn change(&self, call: SetIrqs<'_>) -> Option<io::Result<()>> {
        let is_event = |index: u32| Self::infos().any(|info| info.index == index);
        let mut heard = lock(&self.heard);
        let result = match call {
            SetIrqs::Trigger { index, start, eventfds } if is_event(index) => {
                match (start, eventfds) {
                    (0, [Some(eventfd)]) => {
                        heard.insert(index, eventfd.clone());
                        Ok(())
                    }
                    (0, [None]) => {
                        heard.remove(&index);
                        Ok(())
                    }
                    _ => Err(errno(libc::EINVAL)),
                }
            }
            SetIrqs::Disable { index } if is_event(index) => match heard.remove(&index) {
                Some(_) => Ok(()),
                None => Err(errno(libc::EINVAL)),
            },
            SetIrqs::UnmaskOn { index, .. } if is_event(index) => Err(errno(libc::ENOTTY)),
            _ => return None,
        };
        Some(result)
    }

    fn signal(&self, kind: IrqIndex) -> io::Result<()> {
        let heard = lock(&self.heard);
        heard.get(&kind.number()).map_or(Ok(()), |eventfd| eventfd.write(1))
    }
}

impl PciDevice {
    /// The host asks for the device, as it does every 10 s until it has it. How often it has asked; nobody is asked once
    /// it [has it back](Self::is_given_back).
    ///
    /// # Errors
    ///
    /// The eventfd could not be written.
    pub fn ask_for(&self) -> io::Result<u64> {
        if self.is_given_back() {
            return Ok(self.events.requests.load(Ordering::Relaxed));
        }
        self.events.signal(IrqIndex::Request)?;
        Ok(self.events.requests.fetch_add(1, Ordering::Relaxed).saturating_add(1))
    }

    /// The device tells of an uncorrectable error.
    ///
    /// # Errors
    ///
    /// The eventfd could not be written.
    pub fn fail(&self) -> io::Result<()> {
        self.events.signal(IrqIndex::Error)
    }

    /// The host has the device back: its file is closed, and nothing of it is mapped.
    pub fn is_given_back(&self) -> bool {
        let mapped = lock(&self.events.mappings).iter().any(|holder| holder.strong_count() != 0);
        self.events.check_open().is_err() && !mapped
    }

    /// How many of its events somebody hears.
    pub fn heard(&self) -> usize {
        lock(&self.events.heard).len()
    }
}
