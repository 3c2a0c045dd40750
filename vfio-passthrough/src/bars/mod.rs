//! BARs: direct and trapped areas, placement in guest memory, and accesses that trap.

pub(crate) mod areas;
pub(crate) mod placement;
mod window;

use std::sync::{Arc, OnceLock};

use crate::address::{BarIndex, ByteRange};
use crate::backend::{RegionFlags, RegionInfo};
use crate::device::FunctionDevice;
use crate::error::Error;
use crate::pci::bar::{Bar, MAX_ROM, Space};
use crate::pci::config::ConfigSpace;
use crate::pci::rom;

/// The BARs of a function and its ROM. It carries out the accesses that trap.
pub(crate) struct Bars {
    device: Arc<FunctionDevice>,
    bars: Vec<Bar>,
    /// The regions of BAR0 to BAR5 and the ROM, by BAR number.
    regions: Vec<RegionInfo>,
    /// The content of the ROM, after the first read. It is empty if the ROM cannot be read, or is
    /// another device's.
    rom: OnceLock<Vec<u8>>,
}

/// VFIO's descriptions of the regions of BAR0 to BAR5 and the ROM, by BAR number.
pub(crate) fn regions(device: &FunctionDevice) -> Result<Vec<RegionInfo>, Error> {
    let all = BarIndex::all().chain([BarIndex::ROM]);
    all.map(|bar| device.region(bar.number().into())).collect()
}

impl Bars {
    /// `regions` is the result of the function [`regions`].
    pub fn new(device: Arc<FunctionDevice>, bars: Vec<Bar>, regions: Vec<RegionInfo>) -> Self {
        Self { device, bars, regions, rom: OnceLock::new() }
    }

    /// The BARs in ascending order, then the ROM.
    pub fn all(&self) -> &[Bar] {
        &self.bars
    }

    /// The BAR that decodes `address` now, and the offset of the address in the BAR.
    pub fn decode(
        &self,
        config: &ConfigSpace,
        space: Space,
        address: u64,
    ) -> Option<(BarIndex, u64)> {
        let mut bars = self.bars.iter().filter(|bar| bar.kind.space() == space);
        bars.find_map(|bar| {
            let range = ByteRange::new(config.decoded(bar)?, bar.size)?;
            Some((bar.index, range.offset_of(address)?))
        })
    }

    /// Reads from the device. A failed read gives all-ones.
    pub fn read(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        let Some(region) = self.regions.get(usize::from(bar.number())) else {
            return data.fill(0xff);
        };
        let result = match bar {
            BarIndex::ROM => {
                self.read_rom(region, offset, data);
                Ok(())
            }
            _ => self.device.read(region, offset, data),
        };
        if let Err(error) = result {
            data.fill(0xff);
            self.device.warn(&error);
        }
    }

    /// Reads from a copy, made at the first read. The content of a ROM does not change, and the
    /// kernel walks its images in each read (pci_map_rom). A ROM that cannot be read is all-ones:
    /// it is not asked for again, because the kernel would log a line each time.
    fn read_rom(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) {
        let rom = self.rom.get_or_init(|| self.whole_rom(region));
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match rom.get(start..start.saturating_add(data.len())) {
            Some(found) => data.copy_from_slice(found),
            None => data.fill(0xff),
        }
    }

    fn whole_rom(&self, region: &RegionInfo) -> Vec<u8> {
        let size = usize::try_from(region.size.min(MAX_ROM)).unwrap_or_default();
        let mut rom = vec![0; size];
        if let Err(error) = self.device.read(region, 0, &mut rom) {
            self.device.warn(&error);
            return Vec::new();
        }
        let address = self.device.address;
        if !rom.starts_with(&rom::SIGNATURE) {
            log::debug!("{address}: the ROM has no signature 55 aa");
        }
        match self.other_vendor(&rom) {
            Some(other) => {
                log::warn!(
                    "{address}: the ROM is hidden: it is for a device of vendor {other:04x}"
                );
                Vec::new()
            }
            None => rom,
        }
    }

    /// The vendor that a ROM names, if it is not that of the function. Linux takes the copy of the
    /// boot display's ROM at 0xc0000 for the ROM of other displays too (pci_fixup_video).
    fn other_vendor(&self, rom: &[u8]) -> Option<u16> {
        let own = self.device.header.get()?.identity.vendor;
        rom::vendor(rom).filter(|vendor| *vendor != own)
    }

    /// Writes to the device. A ROM ignores writes.
    pub fn write(&self, bar: BarIndex, offset: u64, data: &[u8]) {
        let region = self.regions.get(usize::from(bar.number()));
        if let Some(region) = region.filter(|region| region.flags.contains(RegionFlags::WRITE)) {
            self.device.warn_of(self.device.write(region, offset, data));
        }
    }
}
