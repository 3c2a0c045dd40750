//! ACPI tables: what there is, and (as much to the point) what there is not.
//!
//! Hardware-reduced ACPI without legacy devices: the guest looks for no PIT, i8042, CMOS clock or
//! VGA.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Method,
    Name, Notify, Package, PackageBuilder, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as RegisterSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use devices::{PowerControl, RESET_VALUE, SLEEP_TYPE_S5, Serial};
use resources::{AddressRange, Layout};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::reset_entry::RESET_ENTRY;
use crate::error::Error;

/// Where PCs have their BIOS, which the guest leaves alone: the tables, and [`RESET_ENTRY`].
pub(crate) const FIRMWARE: AddressRange = AddressRange::between(0xe_0000, 0x10_0000);
/// The tables' place; the RSDP comes first.
const ACPI_TABLES: AddressRange = AddressRange::between(FIRMWARE.start, RESET_ENTRY);

const OEM: [u8; 6] = *b"RSTVMM";
const OEM_TABLE: [u8; 8] = *b"VFIOPASS";
const OEM_REVISION: u32 = 1;

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// The IOAPIC has 24 pins; 16 to 23 are free of legacy interrupts.
const FIRST_PCI_GSI: u32 = 16;
const PCI_GSIS: u32 = 8;

/// IAPC_BOOT_ARCH (ACPI 6.5, table 5.11): no VGA (bit 2), no CMOS clock (bit 5); bits 0 and 1,
/// clear, say that there are no legacy devices and no i8042.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 5;

/// The interrupt of the generic event device, edge-triggered: the one where PCs have their ACPI
/// interrupt.
pub(crate) const POWER_BUTTON_GSI: u32 = 9;
/// What the power button notifies of when it is pressed (ACPI 6.5, table 5.186).
const PRESSED: u8 = 0x80;

/// What the tables describe besides the layout.
#[derive(Debug, Clone)]
pub struct Platform {
    /// Number of CPUs; their APIC ids are 0 and on.
    pub cpus: u8,
    /// PCI slots with a device that may use INTx.
    pub slots: Vec<u8>,
}

/// The GSI of all interrupt pins of a slot. A slot has one function, which has one pin.
pub(crate) fn intx_gsi(slot: u8) -> u32 {
    let line = u32::from(slot).checked_rem(PCI_GSIS);
    FIRST_PCI_GSI.saturating_add(line.unwrap_or(0))
}

/// Writes all tables and returns the address of the RSDP.
pub(crate) fn write(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    platform: &Platform,
) -> Result<u64, Error> {
    let mut tables = Tables { memory, next: ACPI_TABLES.start.saturating_add(Rsdp::len() as u64) };
    let dsdt = tables.put(dsdt(layout, platform).as_slice())?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(tables.put(&bytes(&fadt(dsdt)))?);
    xsdt.add_entry(tables.put(&bytes(&madt(platform)))?);
    xsdt.add_entry(tables.put(&bytes(&mcfg(layout)))?);
    let xsdt = tables.put(&bytes(&xsdt))?;
    let rsdp = bytes(&Rsdp::new(OEM, xsdt));
    memory.write_slice(&rsdp, GuestAddress(ACPI_TABLES.start))?;
    Ok(ACPI_TABLES.start)
}

/// Puts tables one after the other, each at a multiple of 16.
struct Tables<'a> {
    memory: &'a GuestMemoryMmap,
    next: u64,
}

impl Tables<'_> {
    fn put(&mut self, table: &[u8]) -> Result<u64, Error> {
        let place = AddressRange::new(self.next, table.len() as u64).aligned(16);
        let end = place.start.saturating_add(table.len() as u64);
        if end > ACPI_TABLES.end() {
            return Err(Error::DoesNotFit { what: "ACPI", needs: 1, has: 0 });
        }
        self.memory.write_slice(table, GuestAddress(place.start))?;
        self.next = end;
        Ok(place.start)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(port: u16) -> GAS {
    GAS::new(RegisterSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = port(PowerControl::RESET);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(PowerControl::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(PowerControl::SLEEP_STATUS);
    fadt.finalize()
}

fn madt(platform: &Platform) -> impl Aml {
    let mut madt =
        MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(LOCAL_APIC));
    (0..platform.cpus).for_each(|cpu| {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled))
    });
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

fn mcfg(layout: &Layout) -> impl Aml {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(layout.ecam.start, 0, 0, 0);
    mcfg
}

fn dsdt(layout: &Layout, platform: &Platform) -> Sdt {
    const HEADER: u32 = 36;
    const REVISION: u8 = 6;
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, REVISION, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&bytes(&sleep_state()));
    [serial(), motherboard(layout), pci(layout, platform), power_button()]
        .iter()
        .for_each(|device| dsdt.append_slice(device));
    dsdt
}

/// `_S5`: the sleep type is the first element.
fn sleep_state() -> Name {
    Name::new("_S5_".into(), &Package::new(vec![&SLEEP_TYPE_S5, &aml::ZERO]))
}

/// A device of the system bus.
fn device(name: &str, id: &str, objects: Vec<Name>) -> Vec<u8> {
    let id = Name::new("_HID".into(), &EISAName::new(id));
    let unique = Name::new("_UID".into(), &aml::ZERO);
    let mut children: Vec<&dyn Aml> = vec![&id, &unique];
    children.extend(objects.iter().map(|object| object as &dyn Aml));
    bytes(&Scope::new("_SB_".into(), vec![&Device::new(name.into(), children)]))
}

fn resources(descriptors: Vec<&dyn Aml>) -> Name {
    Name::new("_CRS".into(), &ResourceTemplate::new(descriptors))
}

fn serial() -> Vec<u8> {
    type Com1 = Serial<std::io::Sink>;
    let size = u8::try_from(Com1::SIZE).unwrap_or(u8::MAX);
    let interrupt = Interrupt::new(true, true, false, false, Com1::GSI);
    let ports = IO::new(Com1::BASE, Com1::BASE, 0, size);
    device("COM1", "PNP0501", vec![resources(vec![&interrupt, &ports])])
}

/// A button, and the generic event device that tells of it: hardware-reduced ACPI has no fixed one
/// (ACPI 6.5, 4.8.2.2.1.2, 5.6.9).
fn power_button() -> Vec<u8> {
    let button_id = Name::new("_HID".into(), &EISAName::new("PNP0C0C"));
    let button = Device::new("PWRB".into(), vec![&button_id]);
    let events_id = Name::new("_HID".into(), &"ACPI0013");
    let interrupt = Interrupt::new(true, true, false, false, POWER_BUTTON_GSI);
    let interrupts = resources(vec![&interrupt]);
    let (path, pressed) = (Path::new("\\_SB_.PWRB"), PRESSED);
    let notify = Notify::new(&path, &pressed);
    let handler = Method::new("_EVT".into(), 1, true, vec![&notify]);
    let events = Device::new("GED_".into(), vec![&events_id, &interrupts, &handler]);
    bytes(&Scope::new("_SB_".into(), vec![&button, &events]))
}

/// PNP0C02 reserves ECAM: without it Linux does not trust MCFG.
fn motherboard(layout: &Layout) -> Vec<u8> {
    let ecam = Memory32Fixed::new(true, low(layout.ecam.start), low(layout.ecam.size));
    device("MBRD", "PNP0C02", vec![resources(vec![&ecam])])
}

/// The PCI Express host bridge with its windows and interrupt routing.
fn pci(layout: &Layout, platform: &Platform) -> Vec<u8> {
    let compatible = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
    let segment = Name::new("_SEG".into(), &aml::ZERO);
    let bus = Name::new("_BBN".into(), &aml::ZERO);
    device(
        "PCI0",
        "PNP0A08",
        vec![compatible, segment, bus, windows(layout), interrupt_routing(platform)],
    )
}

fn windows(layout: &Layout) -> Name {
    let bus = AddressSpace::new_bus_number(0_u16, 0);
    let ports = AddressSpace::new_io(low16(layout.io.start), low16(last(layout.io)), None);
    let memory = |range: AddressRange| {
        let cacheable = AddressSpaceCacheable::NotCacheable;
        AddressSpace::new_memory(cacheable, true, range.start, last(range), None)
    };
    let memory: Vec<_> = [layout.mmio32, layout.mmio64]
        .into_iter()
        .filter(|range| !range.is_empty())
        .map(memory)
        .collect();
    let mut windows: Vec<&dyn Aml> = vec![&bus, &ports];
    windows.extend(memory.iter().map(|window| window as &dyn Aml));
    resources(windows)
}

/// `_PRT`: each pin of each slot in use goes straight to an IOAPIC pin (ACPI 6.5, 6.2.13).
fn interrupt_routing(platform: &Platform) -> Name {
    let mut routes = PackageBuilder::new();
    let pins = platform.slots.iter().flat_map(|slot| (0..4_u8).map(move |pin| (*slot, pin)));
    for (slot, pin) in pins {
        let address = u32::from(slot) << 16 | 0xffff;
        routes.add_element(&Package::new(vec![&address, &pin, &aml::ZERO, &intx_gsi(slot)]));
    }
    Name::new("_PRT".into(), &routes)
}

fn last(range: AddressRange) -> u64 {
    range.end().saturating_sub(1)
}

/// The layout keeps ECAM below 4 GiB.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// The layout keeps ports below 64 Ki.
fn low16(value: u64) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::layout::fixture::layout;
    use crate::guest::memory::Ram;

    fn written() -> (Ram, u64) {
        let layout = layout("64M", &[]);
        let ram = Ram::new(&layout.ram).unwrap();
        let platform = Platform { cpus: 254, slots: (1..32).collect() };
        let rsdp = write(ram.memory(), &layout, &platform).unwrap();
        (ram, rsdp)
    }

    fn table(ram: &Ram, address: u64) -> Vec<u8> {
        let length: u32 = ram.memory().read_obj(GuestAddress(address + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        ram.memory().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_table_is_reached_from_the_rsdp_and_sums_to_zero() {
        let (ram, rsdp) = written();
        let mut bytes = [0; 36];
        ram.memory().read_slice(&mut bytes, GuestAddress(rsdp)).unwrap();
        assert_eq!((sum(&bytes), sum(&bytes[..20])), (0, 0));
        let xsdt = table(&ram, u64::from_le_bytes(bytes[24..32].try_into().unwrap()));
        assert_eq!((&xsdt[..4], sum(&xsdt)), (&b"XSDT"[..], 0));
        let entries =
            xsdt[36..].chunks(8).map(|entry| u64::from_le_bytes(entry.try_into().unwrap()));
        let tables: Vec<_> = entries.map(|address| table(&ram, address)).collect();
        let signatures: Vec<_> = tables.iter().map(|table| &table[..4]).collect();
        assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG"]);
        let dsdt = u64::from_le_bytes(tables[0][140..148].try_into().unwrap());
        assert_eq!(&table(&ram, dsdt)[..4], b"DSDT");
        assert_eq!(sum(&table(&ram, dsdt)), 0);
        tables.iter().for_each(|table| assert_eq!(sum(table), 0));
    }

    /// Local APICs (ACPI 6.5, 5.2.12.2) tell ids up to 254, which is as many as there can be.
    #[test]
    fn each_of_the_most_cpus_is_told_once() {
        let madt = bytes(&madt(&Platform { cpus: 254, slots: Vec::new() }));
        let mut rest = &madt[44..];
        let mut local_apics = Vec::new();
        while let [kind, length, body @ ..] = rest {
            if *kind == 0 {
                local_apics.push(body[..usize::from(*length) - 2].to_vec());
            }
            rest = &rest[usize::from(*length)..];
        }
        let expected: Vec<_> = (0..254).map(|id| vec![id, id, 1, 0, 0, 0]).collect();
        assert_eq!(local_apics, expected);
    }

    #[test]
    fn slots_are_spread_over_the_free_part_of_the_ioapic() {
        assert_eq!([0, 1, 7, 8, 31].map(intx_gsi), [16, 17, 23, 16, 23]);
    }
}
