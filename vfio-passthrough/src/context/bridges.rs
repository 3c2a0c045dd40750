//! The bridges above the open devices of a guest.
//!
//! When a device is closed the kernel resets it only if it gets the lock of the bridge above it
//! (vfio_pci_core_disable of newer kernels, 6.12.117 for example). It holds that lock during the
//! reset. So of several devices behind one bridge that are closed at the same time, it resets the
//! first one only.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::address::PciAddress;

/// The number of open devices behind each bridge.
#[derive(Default)]
pub(super) struct Bridges(Mutex<BTreeMap<PciAddress, usize>>);

impl Bridges {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PciAddress, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of an open device behind its bridge, until the value is dropped.
pub(super) struct Behind {
    bridges: Arc<Bridges>,
    /// `None` on a root bus.
    bridge: Option<PciAddress>,
}

impl Behind {
    /// Counts a device that is behind `bridge`.
    pub fn new(bridges: &Arc<Bridges>, bridge: Option<PciAddress>) -> Self {
        if let Some(bridge) = bridge {
            let mut counts = bridges.lock();
            let count = counts.entry(bridge).or_default();
            *count = count.saturating_add(1);
        }
        Self { bridges: bridges.clone(), bridge }
    }

    /// Whether no other open device is behind the same bridge.
    pub fn is_alone(&self) -> bool {
        self.bridge.is_none_or(|bridge| self.bridges.lock().get(&bridge) == Some(&1))
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        let mut counts = self.bridges.lock();
        if let Some(count) = self.bridge.and_then(|bridge| counts.get_mut(&bridge)) {
            *count = count.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_one_bridge_are_not_alone() {
        let bridges = Arc::new(Bridges::default());
        let [port, other] = [PciAddress::new(0, 1, 0), PciAddress::new(0, 2, 0)].map(Some);
        let first = Behind::new(&bridges, port);
        assert!(first.is_alone());
        let second = Behind::new(&bridges, port);
        let apart = [Behind::new(&bridges, other), Behind::new(&bridges, None)];
        let on_root = Behind::new(&bridges, None);
        assert!(!first.is_alone() && !second.is_alone() && on_root.is_alone());
        assert!(apart.iter().all(Behind::is_alone));
        drop(first);
        assert!(second.is_alone());
    }
}
