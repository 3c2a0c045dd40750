//! Contradictions in the header, in power management and in the PCI Express capability.

use super::contradictions::{Case, refused, shown};
use super::*;

const ABSENT: &str = "vendor ID 0xffff, or no vendor and device ID";
const BRIDGE: &str = "header type 1, 2 or 3-127";
const PIN: &str = "interrupt pin above 4";
const EXPRESS_VERSION: &str = "PCI Express version 0, or above 2";
const PORT: &str = "PCI Express type of a port, a bridge or an event collector, or a reserved one";
const CLASS: &str = "any class code or revision, such as a bridge's";
const PORT_ENABLED: &str =
    "phantom functions, ARI forwarding, LTR, 10-bit requests or OBFF that the host enabled";
const NEEDS_PORT: &str = "phantom functions, ARI forwarding, LTR, 10-bit requests, OBFF or FRS";
const POWER_VERSION: &str = "power management version above 3";

pub fn cases() -> Vec<Case> {
    vec![
        refused(ABSENT, |odd| odd.put(0, &[0xff; 4])),
        refused(ABSENT, |odd| odd.put(0, &[0; 4])),
        refused(ABSENT, |odd| odd.put(0, &[0xff, 0xff, 0, 0])),
        refused(ABSENT, |odd| odd.put(0, &[0xff, 0xff, 0xff, 0])),
        refused(ABSENT, |odd| odd.put(0, &[0, 0, 0xff, 0xff])),
        refused(ABSENT, |odd| odd.put(0, &[1, 0, 0xff, 0xff])),
        refused(ABSENT, |odd| odd.config.fill(0xff)),
        refused(BRIDGE, |odd| odd.put(0x0e, &[1])),
        refused(BRIDGE, |odd| odd.put(0x0e, &[2])),
        refused(BRIDGE, |odd| odd.put(0x0e, &[3])),
        refused(BRIDGE, |odd| odd.put(0x0e, &[0xff])),
        shown(PIN, |odd| odd.put(0x3d, &[5]), 0, |seen| assert_eq!(seen.u8(0x3d), 1)),
        shown(
            PIN,
            |odd| odd.put(0x3d, &[0xff]),
            0,
            |seen| {
                seen.write(0x04, &[6, 0]);
                assert_eq!((seen.u8(0x3d), seen.guest.pins()), (1, 1));
            },
        ),
        shown(
            "interrupt pin, and no INTx in VFIO",
            |odd| odd.irqs[0] = 0,
            0,
            |seen| {
                seen.write(0x04, &[6, 0]);
                assert_eq!((seen.u8(0x3d), seen.guest.pins()), (0, 0));
            },
        ),
        shown(
            "no interrupt pin, and INTx in VFIO",
            |odd| odd.put(0x3d, &[0]),
            0,
            |seen| {
                seen.write(0x04, &[6, 0]);
                assert_eq!((seen.u8(0x3d), seen.guest.pins()), (0, 0));
            },
        ),
        shown(
            CLASS,
            |odd| odd.put(0x08, &[0xff, 0, 4, 6]),
            0,
            |seen| {
                assert_eq!(seen.u32(0x08), 0x0604_00ff);
            },
        ),
        shown(CLASS, |odd| odd.put(0x08, &[0; 4]), 0, |seen| assert_eq!(seen.u32(0x08), 0)),
    ]
    .into_iter()
    .chain(power())
    .chain(express())
    .collect()
}

fn power() -> Vec<Case> {
    let hidden: fn(&Seen) = |seen| {
        assert_eq!((seen.list(), seen.u32(POWER)), (vec![0x10], 0));
        seen.write(POWER + 4, &[3]);
        assert_eq!(seen.real::<1>(POWER + 4), [0]);
    };
    vec![
        shown(
            "power management version 0",
            |odd| odd.put(POWER + 2, &[0x20]),
            0,
            |seen| {
                assert_eq!((seen.list(), seen.u8(POWER + 2)), (vec![0x10, 0x01], 0x21));
            },
        ),
        shown(POWER_VERSION, |odd| odd.put(POWER + 2, &[4]), 1, hidden),
        shown(POWER_VERSION, |odd| odd.put(POWER + 2, &[7]), 1, hidden),
    ]
}

/// A device whose PCI Express flags are these, and whose registers of links and slots are all ones.
fn flags(odd: &mut Odd, flags: u16) {
    odd.put(EXPRESS + 2, &flags.to_le_bytes());
    odd.put(EXPRESS + 0x0c, &[0xff; 0x18]);
}

fn needs_port(odd: &mut Odd) {
    odd.put32(EXPRESS + 4, 0x1000_0018);
    odd.put32(EXPRESS + 0x24, 0x800e_0820);
}

/// The host enabled phantom functions, ARI forwarding, LTR, 10-bit requests and OBFF.
fn port_enabled(odd: &mut Odd) {
    needs_port(odd);
    odd.put(EXPRESS + 8, &[0x10, 0x02]);
    odd.put(EXPRESS + 0x28, &[0x21, 0x74]);
}

/// The guest finds nothing enabled that it finds no capability of, and its writes leave it as the
/// host set it.
fn leaves_the_host_s_enables(seen: &Seen) {
    assert_eq!([seen.u16(EXPRESS + 8), seen.u16(EXPRESS + 0x28)], [0x0010, 0x0001]);
    seen.write(EXPRESS + 8, &0x0220_u16.to_le_bytes());
    seen.write(EXPRESS + 0x28, &0x0002_u16.to_le_bytes());
    assert_eq!([seen.u16(EXPRESS + 8), seen.u16(EXPRESS + 0x28)], [0x0020, 0x0002]);
    assert_eq!(seen.real::<2>(EXPRESS + 8), [0x20, 0x02]);
    assert_eq!(seen.real::<2>(EXPRESS + 0x28), [0x22, 0x74]);
    seen.write(EXPRESS + 0x28, &0xffff_u16.to_le_bytes());
    assert_eq!(seen.real::<2>(EXPRESS + 0x28), [0xff, 0xff]);
}

/// The host enabled nothing of that: a guest cannot, either.
fn enables_nothing(seen: &Seen) {
    seen.write(EXPRESS + 8, &0x0220_u16.to_le_bytes());
    seen.write(EXPRESS + 0x28, &0xffff_u16.to_le_bytes());
    assert_eq!(seen.real::<2>(EXPRESS + 8), [0x20, 0x00]);
    assert_eq!(seen.real::<2>(EXPRESS + 0x28), [0xdf, 0x8b]);
}

fn is_integrated(seen: &Seen) {
    assert_eq!(seen.u16(EXPRESS + 2), 0x92, "version 2, integrated endpoint");
    let registers = (0x0c..0x24).step_by(4).map(|at| seen.u32(EXPRESS + at));
    assert_eq!(registers.collect::<Vec<_>>(), [0; 6], "links, slots and root ports");
}

fn express() -> Vec<Case> {
    let first: fn(&Seen) = |seen| assert_eq!(seen.u16(EXPRESS + 2), 0x91);
    vec![
        shown(EXPRESS_VERSION, |odd| flags(odd, 0), 0, first),
        shown(EXPRESS_VERSION, |odd| flags(odd, 3), 0, is_integrated),
        shown(EXPRESS_VERSION, |odd| flags(odd, 15), 0, is_integrated),
        shown(PORT, |odd| flags(odd, 0x22), 0, is_integrated),
        shown(PORT, |odd| flags(odd, 0x42), 0, is_integrated),
        shown(PORT, |odd| flags(odd, 0x52), 0, is_integrated),
        shown(PORT, |odd| flags(odd, 0x62), 0, is_integrated),
        shown(PORT, |odd| flags(odd, 0x72), 0, is_integrated),
        shown(PORT, |odd| flags(odd, 0x82), 0, is_integrated),
        shown(PORT, |odd| flags(odd, 0xa2), 0, is_integrated),
        shown(PORT, |odd| flags(odd, 0xf2), 0, is_integrated),
        shown("PCI Express slot, or reserved flags", |odd| flags(odd, 0xff02), 0, is_integrated),
        shown(NEEDS_PORT, needs_port, 0, |seen| {
            assert_eq!([seen.u32(EXPRESS + 4), seen.u32(EXPRESS + 0x24)], [0x1000_0000, 0]);
        }),
        shown(PORT_ENABLED, port_enabled, 0, leaves_the_host_s_enables),
        shown(PORT_ENABLED, needs_port, 0, enables_nothing),
        shown(
            "FLR bit, and no reset in VFIO",
            |odd| odd.resets = false,
            0,
            |seen| {
                assert_eq!(seen.u8(EXPRESS + 7) & 0x10, 0);
            },
        ),
        shown(
            "no FLR bit, and a reset in VFIO",
            |odd| odd.put(EXPRESS + 7, &[0]),
            0,
            |seen| {
                assert_eq!(seen.u8(EXPRESS + 7) & 0x10, 0);
            },
        ),
    ]
}
