//! The number of a function on its bus.

use std::fmt;

/// The number of device numbers on one bus (PCI 3.0, 3.2.2.3.2: five bits).
pub const SLOTS: u8 = 32;
/// The number of functions of one device (PCI 3.0, 3.2.2.3.2: three bits).
pub const FUNCTIONS: u8 = 8;

/// A device number (slot) and a function number on one bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevFn(u8);

impl DevFn {
    /// The function of a slot; `None` if the slot is above 0x1f or the function above 7.
    pub const fn new(slot: u8, function: u8) -> Option<Self> {
        match slot < SLOTS && function < FUNCTIONS {
            true => Some(Self(slot << 3 | function)),
            false => None,
        }
    }

    /// Function 0 of a slot; `None` if the slot is above 0x1f.
    pub const fn of_slot(slot: u8) -> Option<Self> {
        Self::new(slot, 0)
    }

    /// The device number, 0 to 0x1f.
    pub const fn slot(self) -> u8 {
        self.0 >> 3
    }

    /// The function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.0 & 7
    }
}

/// The device number is in bits 7:3, the function number in bits 2:0 (PCI 3.0, 3.2.2.3.2).
impl From<u8> for DevFn {
    fn from(devfn: u8) -> Self {
        Self(devfn)
    }
}

impl From<DevFn> for u8 {
    fn from(devfn: DevFn) -> Self {
        devfn.0
    }
}

/// `05.1`: the slot in hexadecimal, and the function.
impl fmt::Display for DevFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{}", self.slot(), self.function())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_five_bits_of_slot_and_three_of_function() {
        let last = DevFn::new(0x1f, 7).unwrap();
        assert_eq!((last, last.slot(), last.function()), (DevFn::from(0xff), 0x1f, 7));
        assert_eq!([DevFn::new(0x20, 0), DevFn::new(0, 8), DevFn::of_slot(0x20)], [None; 3]);
        assert_eq!(
            (last.to_string(), DevFn::from(0x29).to_string()),
            ("1f.7".into(), "05.1".into())
        );
    }
}
