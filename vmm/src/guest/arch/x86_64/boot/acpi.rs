//! ACPI tables.
//!
//! The ACPI is hardware-reduced and has no legacy devices, so the guest does not probe for a PIT,
//! i8042, CMOS clock or VGA.

mod aml;
mod hot_plug;

use devices::{PowerControl, RESET_VALUE, SLEEP_TYPE_S5, Serial};
use resources::{AddressRange, Layout};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::reset_entry::RESET_ENTRY;
use crate::error::Error;
use crate::guest::boot::Platform;

/// The BIOS area of a PC, which the guest does not use as RAM: the tables, and [`RESET_ENTRY`].
pub(crate) const FIRMWARE: AddressRange = AddressRange::between(0xe_0000, 0x10_0000);
/// The range of the tables; the RSDP comes first.
const ACPI_TABLES: AddressRange = AddressRange::between(FIRMWARE.start, RESET_ENTRY);

const OEM: [u8; 6] = *b"RSTVMM";
const OEM_TABLE: [u8; 8] = *b"VFIOPASS";
const OEM_REVISION: u32 = 1;
/// The program that created the tables, and its version.
const CREATOR: [u8; 4] = *b"RSTV";
const CREATOR_REVISION: u32 = 1;

/// The size of a table's header (ACPI 6.5, table 5.4).
const HEADER_SIZE: u32 = 36;
const RSDP_SIZE: u32 = 36;

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// The IOAPIC has 24 pins; no legacy interrupt uses pins 16 to 23.
const FIRST_PCI_GSI: u32 = 16;
const PCI_GSIS: u32 = 8;

/// IAPC_BOOT_ARCH (ACPI 6.5, table 5.11): no VGA (bit 2), no CMOS clock (bit 5). Bits 0 and 1 are
/// clear: no legacy devices and no i8042.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 5;

/// Flags of the FADT (ACPI 6.5, table 5.10): the power and sleep buttons are not fixed hardware
/// (bits 4 and 5), a reset register exists (bit 10), no display (bit 12), no fixed hardware (bit
/// 20).
const FADT_FLAGS: u32 = 1 << 4 | 1 << 5 | 1 << 10 | 1 << 12 | 1 << 20;

/// The edge-triggered interrupt of the generic event device. PCs use the same GSI for ACPI.
pub(crate) const POWER_BUTTON_PIN: u32 = 9;
/// The second edge-triggered interrupt of the generic event device.
pub(crate) const HOT_PLUG_PIN: u32 = 10;
/// The notification value of a pressed power button (ACPI 6.5, table 5.186).
const PRESSED: u8 = 0x80;

/// The GSI of a slot's interrupt pin: 0 for INTA# to 3 for INTD#. The functions of a slot can have
/// different pins. Neighbouring slots and pins have different GSIs, as on a board.
pub(crate) fn intx_gsi(slot: u8, pin: u8) -> u32 {
    let line = u32::from(slot).saturating_add(pin.into()).checked_rem(PCI_GSIS);
    FIRST_PCI_GSI.saturating_add(line.unwrap_or(0))
}

/// Writes all tables and returns the address of the RSDP.
pub(crate) fn write(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    platform: &Platform,
) -> Result<u64, Error> {
    let mut tables = Tables { memory, next: ACPI_TABLES.start.saturating_add(RSDP_SIZE.into()) };
    let dsdt = tables.put(&dsdt(layout, platform))?;
    let entries =
        [tables.put(&fadt(dsdt))?, tables.put(&madt(platform))?, tables.put(&mcfg(layout))?];
    let xsdt = tables.put(&table(*b"XSDT", 1, entries.map(u64::to_le_bytes).as_flattened()))?;
    memory.write_slice(&rsdp(xsdt), GuestAddress(ACPI_TABLES.start))?;
    Ok(ACPI_TABLES.start)
}

/// Writes tables one after another, each aligned to 16 bytes.
struct Tables<'a> {
    memory: &'a GuestMemoryMmap,
    next: u64,
}

impl Tables<'_> {
    fn put(&mut self, table: &[u8]) -> Result<u64, Error> {
        let place = AddressRange::new(self.next, table.len() as u64).aligned(16);
        let end = place.start.saturating_add(table.len() as u64);
        if end > ACPI_TABLES.end() {
            return Err(Error::DoesNotFit { what: "ACPI", needs: 1, has: 0, least: 64 });
        }
        self.memory.write_slice(table, GuestAddress(place.start))?;
        self.next = end;
        Ok(place.start)
    }
}

/// Prepends the header to a table's body.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let length = HEADER_SIZE.saturating_add(u32::try_from(body.len()).unwrap_or(u32::MAX));
    let mut table = [
        &signature[..],
        &length.to_le_bytes(),
        &[revision, 0],
        &OEM,
        &OEM_TABLE,
        &OEM_REVISION.to_le_bytes(),
        &CREATOR,
        &CREATOR_REVISION.to_le_bytes(),
        body,
    ]
    .concat();
    let sum = checksum(&table);
    put(&mut table, 9, &[sum]);
    table
}

/// The value that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    let sum = |sum: u8, byte: &u8| sum.wrapping_add(*byte);
    bytes.iter().fold(0, sum).wrapping_neg()
}

fn put(table: &mut [u8], offset: usize, field: &[u8]) {
    let bytes = table.iter_mut().skip(offset);
    bytes.zip(field).for_each(|(byte, new)| *byte = *new);
}

/// The RSDP (ACPI 6.5, table 5.3). The first checksum covers the 20 bytes of ACPI 1.0.
fn rsdp(xsdt: u64) -> Vec<u8> {
    const REVISION: u8 = 2;
    const NO_RSDT: [u8; 4] = [0; 4];
    let mut old = [b"RSD PTR ", &[0][..], &OEM, &[REVISION], &NO_RSDT].concat();
    let sum = checksum(&old);
    put(&mut old, 8, &[sum]);
    let new = [&RSDP_SIZE.to_le_bytes()[..], &xsdt.to_le_bytes(), &[0; 4]].concat();
    let mut rsdp = [old, new].concat();
    let sum = checksum(&rsdp);
    put(&mut rsdp, 32, &[sum]);
    rsdp
}

/// A generic address of a one-byte port register (ACPI 6.5, table 5.1): system I/O, 8 bits, byte
/// accesses.
fn port(port: u16) -> [u8; 12] {
    let [low, high] = port.to_le_bytes();
    [1, 8, 0, 1, low, high, 0, 0, 0, 0, 0, 0]
}

/// The FADT (ACPI 6.5, table 5.9). Offsets of the table count from the start of its header.
fn fadt(dsdt: u64) -> Vec<u8> {
    const REVISION: u8 = 6;
    const MINOR_REVISION: u8 = 5;
    const SIZE: usize = 276;
    let mut body = [0; SIZE - HEADER_SIZE as usize];
    let fields: [(usize, &[u8]); 8] = [
        (109, &BOOT_ARCHITECTURE.to_le_bytes()),
        (112, &FADT_FLAGS.to_le_bytes()),
        (116, &port(PowerControl::RESET)),
        (128, &[RESET_VALUE]),
        (131, &[MINOR_REVISION]),
        (140, &dsdt.to_le_bytes()),
        (244, &port(PowerControl::SLEEP_CONTROL)),
        (256, &port(PowerControl::SLEEP_STATUS)),
    ];
    for (offset, field) in fields {
        put(&mut body, offset.saturating_sub(HEADER_SIZE as usize), field);
    }
    table(*b"FACP", REVISION, &body)
}

/// The MADT (ACPI 6.5, 5.2.12): a local APIC per CPU, with processor and APIC id, and one IOAPIC.
fn madt(platform: &Platform) -> Vec<u8> {
    const ENABLED: u8 = 1;
    let no_flags = [0; 4];
    let cpus = (0..platform.cpus).flat_map(|cpu| [0, 8, cpu, cpu, ENABLED, 0, 0, 0]);
    let io_apic = [&[1, 12, 0, 0], &IO_APIC.to_le_bytes()[..], &[0; 4]].concat();
    let head = [LOCAL_APIC.to_le_bytes(), no_flags].concat();
    let body: Vec<u8> = head.into_iter().chain(cpus).chain(io_apic).collect();
    table(*b"APIC", 1, &body)
}

/// The MCFG (PCI Firmware Specification 3.3, table 4-3): ECAM of segment 0, bus 0 only.
fn mcfg(layout: &Layout) -> Vec<u8> {
    let base = layout.ecam.start.to_le_bytes();
    table(*b"MCFG", 1, &[&[0; 8], &base[..], &[0; 8]].concat())
}

fn dsdt(layout: &Layout, platform: &Platform) -> Vec<u8> {
    const REVISION: u8 = 6;
    let objects = [
        sleep_state(),
        serial(),
        motherboard(layout),
        pci(layout, platform),
        events(platform.hot_plug),
    ];
    table(*b"DSDT", REVISION, &objects.concat())
}

/// `_S5`: its first element is the sleep type.
fn sleep_state() -> Vec<u8> {
    let values = [SLEEP_TYPE_S5, 0].map(|value| aml::integer(value.into()));
    aml::name(b"_S5_", &aml::package(&values))
}

/// A device on the system bus.
fn device(name: &aml::Segment, id: u16, objects: Vec<Vec<u8>>) -> Vec<u8> {
    let mut children =
        vec![aml::name(b"_HID", &aml::pnp(id)), aml::name(b"_UID", &aml::integer(0))];
    children.extend(objects);
    aml::scope(b"_SB_", &[aml::device(name, &children)])
}

fn resources(descriptors: &[Vec<u8>]) -> Vec<u8> {
    aml::name(b"_CRS", &aml::resources(descriptors))
}

fn serial() -> Vec<u8> {
    type Com1 = Serial<std::io::Sink>;
    let size = u8::try_from(Com1::SIZE).unwrap_or(u8::MAX);
    let descriptors = [aml::interrupt(Com1::GSI), aml::ports(Com1::BASE, size)];
    device(b"COM1", 0x0501, vec![resources(&descriptors)])
}

/// A power button, and the generic event device that notifies of its presses and of hot-plug,
/// because hardware-reduced ACPI has no fixed power button and no general-purpose events (ACPI 6.5,
/// 4.8.2.2.1.2, 5.6.9).
fn events(hot_plug: bool) -> Vec<u8> {
    let button = aml::device(b"PWRB", &[aml::name(b"_HID", &aml::pnp(0x0c0c))]);
    let press = aml::notify(&aml::path(&[*b"_SB_", *b"PWRB"]), PRESSED);
    let plug = aml::path(&[*b"_SB_", *b"PCI0", *hot_plug::EVENT]);
    let mut handlers = vec![(POWER_BUTTON_PIN, press)];
    handlers.extend(hot_plug.then_some((HOT_PLUG_PIN, plug)));
    let interrupts: Vec<_> = handlers.iter().map(|(gsi, _)| aml::interrupt(*gsi)).collect();
    let handle = handlers
        .iter()
        .flat_map(|(gsi, body)| aml::when(&aml::equal(&aml::ARGUMENT, &aml::integer(*gsi)), body));
    let events = [
        aml::name(b"_HID", &aml::string("ACPI0013")),
        resources(&interrupts),
        aml::method(b"_EVT", 1, &handle.collect::<Vec<u8>>()),
    ];
    aml::scope(b"_SB_", &[button, aml::device(b"GED_", &events)])
}

/// PNP0C02 reserves the ECAM; without the reservation Linux ignores the MCFG.
fn motherboard(layout: &Layout) -> Vec<u8> {
    let ecam = aml::memory(low(layout.ecam.start), low(layout.ecam.size));
    device(b"MBRD", 0x0c02, vec![resources(&[ecam])])
}

/// The PCI Express host bridge with its windows and interrupt routes.
fn pci(layout: &Layout, platform: &Platform) -> Vec<u8> {
    let mut objects = vec![
        aml::name(b"_CID", &aml::pnp(0x0a03)),
        aml::name(b"_SEG", &aml::integer(0)),
        aml::name(b"_BBN", &aml::integer(0)),
        windows(layout),
    ];
    if platform.hot_plug {
        objects.push(interrupt_routing(&hot_plug::SLOTS.collect::<Vec<_>>()));
        objects.push(hot_plug::objects());
    } else {
        objects.push(interrupt_routing(&platform.slots));
    }
    device(b"PCI0", 0x0a08, objects)
}

fn windows(layout: &Layout) -> Vec<u8> {
    let ports = aml::port_window(low16(layout.io.start), low16(last(layout.io)));
    let memory = [layout.mmio32, layout.mmio64].into_iter();
    let memory = memory.filter(|range| !range.is_empty());
    let memory = memory.map(|range| aml::memory_window(range.start, last(range)));
    let windows: Vec<_> = [aml::bus_window(), ports].into_iter().chain(memory).collect();
    resources(&windows)
}

/// `_PRT`: connects each pin of each used slot to an IOAPIC pin (ACPI 6.5, 6.2.13).
fn interrupt_routing(slots: &[u8]) -> Vec<u8> {
    let route = |slot: u8, pin: u8| {
        let address = u32::from(slot) << 16 | 0xffff;
        aml::package(&[address, pin.into(), 0, intx_gsi(slot, pin)].map(aml::integer))
    };
    let slots = slots.iter();
    let routes: Vec<_> = slots.flat_map(|slot| (0..4).map(move |pin| route(*slot, pin))).collect();
    aml::name(b"_PRT", &aml::package(&routes))
}

fn last(range: AddressRange) -> u64 {
    range.end().saturating_sub(1)
}

/// The layout places ECAM below 4 GiB.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// The layout places ports below 64 Ki.
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
        let platform = Platform { cpus: 254, slots: Vec::new(), hot_plug: true };
        let rsdp = write(ram.memory(), &layout, &platform).unwrap();
        (ram, rsdp)
    }

    fn table_at(ram: &Ram, address: u64) -> Vec<u8> {
        let length: u32 = ram.memory().read_obj(GuestAddress(address + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        ram.memory().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn the_rsdp_leads_to_every_table_and_each_sums_to_zero() {
        let (ram, rsdp) = written();
        let mut bytes = [0; 36];
        ram.memory().read_slice(&mut bytes, GuestAddress(rsdp)).unwrap();
        assert_eq!((sum(&bytes), sum(&bytes[..20])), (0, 0));
        let xsdt = table_at(&ram, u64::from_le_bytes(bytes[24..32].try_into().unwrap()));
        assert_eq!((&xsdt[..4], sum(&xsdt)), (&b"XSDT"[..], 0));
        let entries =
            xsdt[36..].chunks(8).map(|entry| u64::from_le_bytes(entry.try_into().unwrap()));
        let tables: Vec<_> = entries.map(|address| table_at(&ram, address)).collect();
        let signatures: Vec<_> = tables.iter().map(|table| &table[..4]).collect();
        assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG"]);
        let dsdt = u64::from_le_bytes(tables[0][140..148].try_into().unwrap());
        assert_eq!(&table_at(&ram, dsdt)[..4], b"DSDT");
        assert_eq!(sum(&table_at(&ram, dsdt)), 0);
        tables.iter().for_each(|table| assert_eq!(sum(table), 0));
    }

    /// Local APICs (ACPI 6.5, 5.2.12.2) have ids up to 254, so 254 CPUs are the maximum.
    #[test]
    fn the_madt_lists_each_of_254_cpus_once() {
        let madt = madt(&Platform { cpus: 254, slots: Vec::new(), hot_plug: false });
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
    fn spreads_slots_over_the_free_pins_of_the_ioapic() {
        assert_eq!([0, 1, 7, 8, 31].map(|slot| intx_gsi(slot, 0)), [16, 17, 23, 16, 23]);
        assert_eq!([0, 1, 2, 3].map(|pin| intx_gsi(5, pin)), [21, 22, 23, 16]);
    }
}
