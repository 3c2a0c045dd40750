//! The configuration of a guest, as the control socket reports it.

use std::sync::Arc;

use devices::DevFn;
use serde::Serialize;
use vfio_passthrough::{Bar, BarKind, PassthroughFunction};

use crate::config::Config;

/// The configuration of a guest. Only its devices change.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Configuration {
    cpus: u8,
    memory_bytes: u64,
    /// The size of the huge pages of the RAM, 2M or 1G; null for ordinary pages.
    hugepages: Option<String>,
    kernel: String,
    /// The kernel's interface for the devices, type1 or iommufd; null without devices.
    pub(super) iommu: Option<&'static str>,
    /// The assigned devices, in the order in which they came.
    pub(crate) devices: Vec<DeviceInfo>,
}

/// An assigned device.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DeviceInfo {
    /// The address in the host.
    pub(crate) address: String,
    /// The address in the guest.
    pub(crate) guest_address: String,
    pub(crate) bars: Vec<BarInfo>,
}

/// A BAR of an assigned device.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct BarInfo {
    /// 0 to 5; 6 is the expansion ROM.
    pub(crate) index: u8,
    /// The size in bytes.
    pub(crate) size: u64,
    /// `io`, `memory32`, `memory64` or `rom`.
    pub(crate) kind: &'static str,
}

impl Configuration {
    /// The configuration of `config` with `devices`.
    pub(crate) fn new(
        config: &Config,
        iommu: Option<&'static str>,
        devices: Vec<DeviceInfo>,
    ) -> Self {
        Self {
            cpus: config.cpus,
            memory_bytes: config.memory.bytes(),
            hugepages: config.memory.hugepages.map(|size| size.to_string()),
            kernel: config.kernel.to_string(),
            iommu,
            devices,
        }
    }
}

impl DeviceInfo {
    /// Describes the function at a place of the guest's bus.
    pub(crate) fn of((place, function): &(DevFn, Arc<PassthroughFunction>)) -> Self {
        let bar = |bar: &Bar| BarInfo {
            index: bar.index.number(),
            size: bar.size,
            kind: match bar.kind {
                BarKind::Io => "io",
                BarKind::Memory32 => "memory32",
                BarKind::Memory64 => "memory64",
                BarKind::Rom => "rom",
            },
        };
        Self {
            address: function.address().to_string(),
            guest_address: format!("0000:00:{place}"),
            bars: function.bars().iter().map(bar).collect(),
        }
    }
}
