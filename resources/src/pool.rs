//! Leases: a piece of a pool that gives itself back when dropped.
//!
//! A freed piece is merged with its free neighbours, so that a pool whose leases are all dropped is
//! whole again (vm-allocator 0.1 keeps the pieces apart for ever, which runs out of GSIs by hot-plug).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use crate::AddressRange;
use crate::range::{join, subtract};

/// Nothing free is large enough, or the place asked for is taken.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no {size:#x} {name} free (aligned to {align:#x}) in {range}")]
pub struct PoolError {
    name: &'static str,
    size: u64,
    align: u64,
    range: AddressRange,
}

/// Numbers of one kind (GSIs, memory slots, ports, addresses) to be leased.
#[derive(Clone)]
pub struct Pool {
    name: &'static str,
    range: AddressRange,
    free: Arc<Mutex<Vec<AddressRange>>>,
}

impl Pool {
    /// All of `range`, free; `name` is the plural that errors call its contents.
    pub fn new(name: &'static str, range: AddressRange) -> Self {
        Self {
            name,
            range,
            free: Arc::new(Mutex::new(vec![range])),
        }
    }

    /// Leases the lowest free `size` numbers that start at a multiple of `align`, a power of two.
    pub fn lease(&self, size: u64, align: u64) -> Result<Lease, PoolError> {
        let mut free = lock(&self.free);
        let mut starts = free.iter().map(|range| range.aligned(align));
        let found = starts.find(|range| range.size >= size && size > 0);
        let start = found.ok_or(self.exhausted(size, align))?.start;
        Ok(self.take(&mut free, AddressRange::new(start, size)))
    }

    /// Leases exactly `range`.
    pub fn lease_at(&self, range: AddressRange) -> Result<Lease, PoolError> {
        let mut free = lock(&self.free);
        let is_free = !range.is_empty() && free.iter().any(|part| part.contains(&range));
        let range = is_free.then_some(range).ok_or(self.exhausted(range.size, 1))?;
        Ok(self.take(&mut free, range))
    }

    fn take(&self, free: &mut Vec<AddressRange>, range: AddressRange) -> Lease {
        *free = subtract(std::mem::take(free), &[range]);
        Lease {
            range,
            free: Arc::clone(&self.free),
        }
    }

    fn exhausted(&self, size: u64, align: u64) -> PoolError {
        PoolError {
            name: self.name,
            size,
            align,
            range: self.range,
        }
    }
}

/// The list is whole between calls, so a panic elsewhere does not spoil it.
fn lock(free: &Mutex<Vec<AddressRange>>) -> MutexGuard<'_, Vec<AddressRange>> {
    free.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A piece of a [`Pool`]; free again when dropped.
pub struct Lease {
    range: AddressRange,
    free: Arc<Mutex<Vec<AddressRange>>>,
}

impl Lease {
    /// What is leased.
    pub fn range(&self) -> AddressRange {
        self.range
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lease").field(&self.range).finish()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut free = lock(&self.free);
        free.push(self.range);
        *free = join(std::mem::take(&mut free));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gsis() -> Pool {
        Pool::new("GSIs", AddressRange::new(24, 4))
    }

    #[test]
    fn a_dropped_lease_is_free_again() {
        let pool = gsis();
        let first = pool.lease(3, 1).unwrap();
        assert_eq!(first.range(), AddressRange::new(24, 3));
        let text = pool.lease(2, 1).unwrap_err().to_string();
        assert!(
            text.contains("no 0x2 GSIs free") && text.contains("0x18-0x1b"),
            "{text}"
        );
        drop(first);
        assert_eq!(pool.lease(4, 1).unwrap().range(), AddressRange::new(24, 4));
    }

    #[test]
    fn an_exact_lease_keeps_others_off() {
        let pool = gsis();
        let _held = pool.lease_at(AddressRange::new(24, 1)).unwrap();
        assert!(pool.lease_at(AddressRange::new(24, 2)).is_err());
        assert_eq!(pool.lease(2, 2).unwrap().range(), AddressRange::new(26, 2));
    }

    #[test]
    fn a_lease_outlives_its_pool() {
        let lease = gsis().lease(1, 1).unwrap();
        assert_eq!(lease.range().size, 1);
    }
}
