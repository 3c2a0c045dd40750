//! The VFIO device of a function. Its errors name the device.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;

use crate::address::PciAddress;
use crate::backend::{Device, DeviceFlags, IrqInfo, RegionInfo};
use crate::error::Error;
use crate::irq::IrqIndex;
use crate::pci::presence::Header;
use crate::pci::regs::{COMMAND, CONVENTIONAL_SIZE, Command};

/// The number of warnings that one function logs about failed accesses. The limit keeps a guest
/// from filling the host's log.
const MAX_WARNINGS: u32 = 16;

/// The first 256 bytes of config space.
pub(crate) type ConventionalConfig = [u8; CONVENTIONAL_SIZE as usize];

/// An open device and its PCI address on the host.
pub(crate) struct FunctionDevice {
    pub address: PciAddress,
    pub device: Arc<dyn Device>,
    config: RegionInfo,
    warnings: AtomicU32,
    detached: AtomicBool,
    /// The device did not respond at the last look.
    pub(crate) absent: AtomicBool,
    /// The header of the first look.
    pub(crate) header: OnceLock<Header>,
}

impl FunctionDevice {
    /// Checks that the device is behind vfio-pci (`VFIO_DEVICE_FLAGS_PCI`), and gets the region of
    /// its config space.
    pub fn new(address: PciAddress, device: Arc<dyn Device>) -> Result<Self, Error> {
        if !device.flags().contains(DeviceFlags::PCI) {
            let reason = "it is not a PCI function (VFIO_DEVICE_FLAGS_PCI is not set)";
            return Err(Error::NotUsable { address, reason });
        }
        let config = region(address, &*device, VFIO_PCI_CONFIG_REGION_INDEX)?;
        Ok(Self {
            address,
            device,
            config,
            warnings: AtomicU32::new(0),
            detached: AtomicBool::new(false),
            absent: AtomicBool::new(false),
            header: OnceLock::new(),
        })
    }

    /// VFIO's description of a region.
    pub fn region(&self, index: u32) -> Result<RegionInfo, Error> {
        region(self.address, &*self.device, index)
    }

    /// VFIO's description of an interrupt index.
    pub fn irq(&self, index: IrqIndex) -> Result<IrqInfo, Error> {
        let address = self.address;
        let irq = self.device.irq(index.number());
        irq.map_err(|source| Error::DescribeInterrupts { address, index, source })
    }

    /// The size of config space in bytes: 256, or 4096 with PCI Express.
    pub fn config_size(&self) -> u64 {
        self.config.size
    }

    /// Reads config space, which vfio-pci virtualizes in part. Nothing answers past its end, so
    /// bytes there are all-ones.
    pub fn read_config(&self, offset: u16, data: &mut [u8]) -> Result<(), Error> {
        self.read_existing(offset, data).map_err(self.region_error("read", self.config.index))
    }

    fn read_existing(&self, offset: u16, data: &mut [u8]) -> io::Result<()> {
        let end = self.existing(offset, data.len());
        data.iter_mut().skip(end).for_each(|byte| *byte = 0xff);
        match data.get_mut(..end) {
            Some(data) if !data.is_empty() => self.device.read(&self.config, offset.into(), data),
            _ => Ok(()),
        }
    }

    /// How many of `length` bytes from `offset` on exist in config space.
    fn existing(&self, offset: u16, length: usize) -> usize {
        let left = self.config.size.saturating_sub(offset.into());
        usize::try_from(left).map_or(length, |left| left.min(length))
    }

    /// Calls `walk` with a function that reads config space.
    pub fn walk_config<T>(
        &self,
        walk: impl FnOnce(&dyn Fn(u16, &mut [u8]) -> io::Result<()>) -> io::Result<T>,
    ) -> Result<T, Error> {
        walk(&|offset, data| self.read_existing(offset, data))
            .map_err(self.region_error("read", self.config.index))
    }

    /// Writes config space through VFIO. Bytes past its end are ignored.
    pub fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), Error> {
        match data.get(..self.existing(offset, data.len())) {
            Some(data) if !data.is_empty() => self.write(&self.config, offset.into(), data),
            _ => Ok(()),
        }
    }

    /// Reads the first 256 bytes of config space in one call.
    pub fn conventional_config(&self) -> Result<ConventionalConfig, Error> {
        let mut conventional = [0; CONVENTIONAL_SIZE as usize];
        self.read_config(0, &mut conventional)?;
        Ok(conventional)
    }

    /// Writes the command register.
    pub fn write_command(&self, command: Command) -> Result<(), Error> {
        self.write_config(COMMAND, &command.bits().to_le_bytes())
    }

    /// Reads a region.
    pub fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        let result = self.device.read(region, offset, data);
        result.map_err(self.region_error("read", region.index))
    }

    /// Writes a region.
    pub fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> Result<(), Error> {
        let result = self.device.write(region, offset, data);
        result.map_err(self.region_error("write", region.index))
    }

    fn region_error(
        &self,
        operation: &'static str,
        region: u32,
    ) -> impl FnOnce(io::Error) -> Error + use<> {
        let address = self.address;
        move |source| Error::Region { address, operation, region, source }
    }

    /// Logs a failed access. Errors after detach are expected: they are not logged.
    pub fn warn(&self, error: &Error) {
        if !self.is_detached() && self.warnings.fetch_add(1, Ordering::Relaxed) < MAX_WARNINGS {
            log::warn!("{error}");
        }
    }

    /// Logs the error of a result, if it has one.
    pub fn warn_of(&self, result: Result<(), Error>) {
        if let Err(error) = result {
            self.warn(&error);
        }
    }

    /// Whether the device was closed while the guest ran.
    pub fn is_detached(&self) -> bool {
        self.detached.load(Ordering::Acquire)
    }

    /// Closes the device for good.
    pub fn detach(&self) {
        self.detached.store(true, Ordering::Release);
        self.device.close();
    }
}

fn region(address: PciAddress, device: &dyn Device, region: u32) -> Result<RegionInfo, Error> {
    let operation = "describe";
    device.region(region).map_err(|source| Error::Region { address, operation, region, source })
}

/// Collects the results of steps that are all carried out. It keeps the first error and logs the
/// others.
pub(crate) struct FirstError<'a> {
    device: &'a FunctionDevice,
    result: Result<(), Error>,
}

impl<'a> FirstError<'a> {
    /// An accumulator without an error.
    pub fn new(device: &'a FunctionDevice) -> Self {
        Self { device, result: Ok(()) }
    }

    /// Adds the result of the next step.
    pub fn add(&mut self, result: Result<(), Error>) {
        match (&self.result, result) {
            (Ok(()), result) => self.result = result,
            (Err(_), result) => self.device.warn_of(result),
        }
    }

    /// Whether no step has failed.
    pub fn is_ok(&self) -> bool {
        self.result.is_ok()
    }

    /// The first error, if there was one.
    pub fn into_result(self) -> Result<(), Error> {
        self.result
    }
}
