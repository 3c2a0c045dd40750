//! Sizes, and how they are shown.

pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
pub(super) const FOUR_GIB: u64 = 4 * GIB;

/// `bytes` in the largest unit of which it is a multiple.
pub(super) fn size(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let whole = units.iter().find(|(unit, _)| bytes.checked_rem(*unit) == Some(0));
    match whole.filter(|_| bytes != 0) {
        Some((unit, name)) => format!("{} {name}", bytes.checked_div(*unit).unwrap_or(bytes)),
        None => format!("{bytes} B"),
    }
}
