//! Registers that contradict the specification or VFIO: each row of the docs has its cases.

use super::*;

/// A contradiction.
pub struct Case {
    /// The row of `docs/devices.md`.
    pub row: &'static str,
    /// Makes a plain device odd.
    pub change: fn(&mut Odd),
    /// The number of warnings.
    pub lines: usize,
    /// Checks what the guest sees; `None` if the device is refused.
    pub check: Option<fn(&Seen)>,
}

/// A device that the guest sees.
pub fn shown(row: &'static str, change: fn(&mut Odd), lines: usize, check: fn(&Seen)) -> Case {
    Case { row, change, lines, check: Some(check) }
}

/// A device that is refused.
pub fn refused(row: &'static str, change: fn(&mut Odd)) -> Case {
    Case { row, change, lines: 0, check: None }
}

fn cases() -> Vec<Case> {
    let all = [header::cases(), lists::cases(), messages::cases(), bars::cases()];
    all.into_iter().flatten().collect()
}

#[test]
fn a_guest_sees_a_sane_value_or_nothing() {
    for (number, case) in cases().into_iter().enumerate() {
        let mut odd = Odd::plain();
        (case.change)(&mut odd);
        println!("case {number}: {}", case.row);
        let (assigned, lines) = logged(|| odd.assign());
        assert_eq!(lines, case.lines, "{}", case.row);
        match (assigned, case.check) {
            (Ok(seen), Some(check)) => check(&seen),
            (Err(error), None) => {
                let text = error.to_string();
                assert!(text.starts_with("0000:01:00.0: "), "{}: {text}", case.row);
            }
            (Ok(_), None) => panic!("{}: not refused", case.row),
            (Err(error), Some(_)) => panic!("{}: {error}", case.row),
        }
    }
}

#[test]
fn a_plain_device_logs_nothing() {
    let (seen, lines) = logged(|| Odd::plain().assign().unwrap());
    assert_eq!((lines, seen.list()), (0, vec![0x10, 0x01]));
}

#[test]
fn docs_devices_md_has_the_rows_of_the_cases() {
    let mut documented: Vec<_> = rows_of("Values that contradict")
        .into_iter()
        .map(|row| row[0])
        .filter(|name| *name != "the device has")
        .collect();
    let mut tested: Vec<_> = cases().into_iter().map(|case| case.row).collect();
    documented.sort_unstable();
    tested.sort_unstable();
    tested.dedup();
    assert_eq!(documented, tested);
}
