//! MSI or MSI-X of one function: binds vectors in VFIO and routes them to the guest.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::error::Error;
use super::index::IrqIndex;
use super::plan::{BoundState, Growth, Had, Step, fewer, plan, plan_one};
use crate::address::PciAddress;
use crate::backend::{Device, IrqFlags, IrqInfo, SetIrqs};
use crate::host::MsiVectors;
use crate::pci::message::ProgrammedVectors;

/// MSI or MSI-X of one function. Dropping it disables the index, then frees the vectors.
pub struct Binding {
    address: PciAddress,
    index: IrqIndex,
    state: BoundState,
    growth: Growth,
    /// The host has too little for what the guest programmed. This was reported.
    is_short: bool,
    vectors: Box<dyn MsiVectors>,
    /// The triggers of vectors that are or were bound.
    eventfds: BTreeMap<u16, Arc<EventFd>>,
    device: Arc<dyn Device>,
}

impl Binding {
    /// A binding without bound vectors. `irq` is VFIO's description of the index.
    pub fn new(
        address: PciAddress,
        index: IrqIndex,
        device: Arc<dyn Device>,
        irq: IrqInfo,
        vectors: Box<dyn MsiVectors>,
    ) -> Self {
        // The vectors of MSI are one block, which is allocated at enable (vfio_msi_enable).
        let fixed = index == IrqIndex::Msi || irq.flags.contains(IrqFlags::NORESIZE);
        let growth = if fixed { Growth::Fixed } else { Growth::Dynamic };
        Self {
            address,
            index,
            state: BoundState::default(),
            growth,
            is_short: false,
            vectors,
            eventfds: BTreeMap::new(),
            device,
        }
    }

    /// Binds and routes the vectors that the guest programmed. After a failure, the next call
    /// retries the missing steps.
    ///
    /// If the host has too little for some vectors, the others work, and one line is logged.
    ///
    /// # Errors
    ///
    /// The first failure. Earlier steps are not undone. If a route fails, the vectors are bound all
    /// the same, and their eventfds collect interrupts. Any other failure ends the call. A host
    /// that has too little for any vector is an error at the first call only.
    pub fn reconcile(&mut self, wanted: &ProgrammedVectors) -> Result<(), Error> {
        let mut shortage = None;
        let was_enabled = self.state.enabled;
        let steps = plan(wanted, &self.state, self.growth);
        let result = self.carry_out_all(steps, wanted, &mut shortage);
        if was_enabled && !self.state.enabled && !wanted.enabled {
            // Clearing the enable bit clears the pending bits (PCI 3.0, 6.8.2).
            self.clear_pending();
        }
        self.note_shortage(wanted, shortage, result)
    }

    /// Does the same after the guest changed one vector, if the host is not short of any. `one` is
    /// what the guest programmed of this vector, and `all` that of all vectors.
    ///
    /// # Errors
    ///
    /// As [`reconcile`](Self::reconcile).
    pub fn reconcile_one(
        &mut self,
        vector: u16,
        one: &ProgrammedVectors,
        all: impl FnOnce() -> ProgrammedVectors,
    ) -> Result<(), Error> {
        let mut shortage = None;
        let steps = plan_one(one, vector, &self.state, self.growth);
        let result = self.carry_out_all(steps, one, &mut shortage);
        match shortage {
            None => result,
            some => self.note_shortage(&all(), some, result),
        }
    }

    /// Records whether the host has too little, and logs it once.
    fn note_shortage(
        &mut self,
        wanted: &ProgrammedVectors,
        shortage: Option<Error>,
        result: Result<(), Error>,
    ) -> Result<(), Error> {
        let was_short = self.is_short;
        // A guest that enables the index again is not reported again.
        self.is_short = (was_short || shortage.is_some()) && !self.has_all(wanted);
        match shortage.filter(|_| !was_short) {
            Some(error) if !self.state.enabled => result.and(Err(error)),
            Some(error) => {
                self.report(wanted, &error);
                result
            }
            None => result,
        }
    }

    /// Whether the guest enabled the index, and every vector that it programmed is bound and routed.
    fn has_all(&self, wanted: &ProgrammedVectors) -> bool {
        let fewer = self.growth == Growth::Fixed && self.state.bound.len() < wanted.vectors.into();
        wanted.enabled && self.state.is_complete(wanted) && !fewer
    }

    fn report(&self, wanted: &ProgrammedVectors, error: &Error) {
        let (address, index, state) = (self.address, self.index, &self.state);
        let works =
            |vector: &&u16| state.bound.contains(vector) && state.routed.contains_key(vector);
        let (had, asked) = match self.growth {
            Growth::Fixed if state.bound.len() < wanted.vectors.into() => {
                (state.bound.len(), wanted.vectors.into())
            }
            _ => (wanted.unmasked.keys().filter(works).count(), wanted.unmasked.len()),
        };
        log::warn!(
            "{address}: {index} has {had} of the {asked} vectors that the guest uses: {error}"
        );
    }

    /// Carries out a plan. `shortage` gets the first error for which the host had too little.
    fn carry_out_all(
        &mut self,
        steps: Vec<Step>,
        wanted: &ProgrammedVectors,
        shortage: &mut Option<Error>,
    ) -> Result<(), Error> {
        let mut result = Ok(());
        let mut steps = VecDeque::from(steps);
        while let Some(step) = steps.pop_front() {
            let Err(error) = self.carry_out(&step) else {
                self.state.after(&step, wanted);
                continue;
            };
            let had = error.had(&step).map(|had| usable(self.index, had));
            let smaller = had.map(|had| fewer(&step, had, &self.state, self.growth));
            let smaller = smaller.unwrap_or_default();
            let goes_on = match step {
                Step::Route(_) => true,
                Step::Bind(_) => !smaller.is_empty() || had.is_some() && self.state.enabled,
                Step::EnableEmpty | Step::Disable => false,
            };
            if smaller.is_empty() {
                self.state.after_failure(&step);
            }
            smaller.into_iter().rev().for_each(|step| steps.push_front(step));
            match had {
                Some(_) => drop(shortage.get_or_insert(error)),
                None => result = result.and(Err(error)),
            }
            if !goes_on {
                break;
            }
        }
        result
    }

    /// The guest enables the index again: the next call asks the host for all vectors.
    pub fn ask_again(&mut self) {
        self.state.ask_again();
    }

    /// Whether the index is enabled in VFIO.
    pub fn is_enabled(&self) -> bool {
        self.state.enabled
    }

    /// Whether the host had too little when the vectors were bound last.
    pub fn is_short(&self) -> bool {
        self.is_short
    }

    /// Whether the vector's eventfd is bound.
    pub fn is_bound(&self, vector: u16) -> bool {
        self.state.bound.contains(&vector)
    }

    /// Whether the vector is bound, and fired while it was not routed.
    pub fn is_pending(&self, vector: u16) -> bool {
        let masked = self.is_bound(vector) && !self.state.routed.contains_key(&vector);
        let eventfd = self.eventfds.get(&vector).filter(|_| masked);
        // An eventfd can only be looked at by reading it. Writing the count back adds to what came
        // meanwhile.
        eventfd
            .is_some_and(|eventfd| eventfd.read().is_ok_and(|count| eventfd.write(count).is_ok()))
    }

    /// Forgets what vectors fired while they were not routed.
    fn clear_pending(&self) {
        // EAGAIN: nothing fired.
        self.eventfds.values().for_each(|eventfd| drop(eventfd.read()));
    }

    fn carry_out(&mut self, step: &Step) -> Result<(), Error> {
        let index = self.index;
        match step {
            Step::Route(changes) => {
                self.vectors.update(changes).map_err(|source| Error::Route { index, source })
            }
            // One vector without an eventfd enables the index and binds nothing
            // (vfio_pci_set_msi_trigger).
            Step::EnableEmpty => self.trigger(0, &[None]),
            Step::Bind(vectors) => {
                let (Some(first), Some(last)) = (vectors.first(), vectors.last()) else {
                    return Ok(());
                };
                let mut eventfds = Vec::new();
                for vector in *first..=*last {
                    let named = vectors.binary_search(&vector).is_ok();
                    eventfds.push(if named { Some(self.eventfd(vector)?) } else { None });
                }
                self.trigger(*first, &eventfds)
            }
            Step::Disable => disable(&*self.device, index),
        }
    }

    fn eventfd(&mut self, vector: u16) -> Result<Arc<EventFd>, Error> {
        let index = self.index;
        let made = self.vectors.trigger(vector);
        let eventfd = made.map_err(|source| Error::Eventfd { index, vector, source })?;
        self.eventfds.insert(vector, eventfd.clone());
        Ok(eventfd)
    }

    fn trigger(&self, start: u16, eventfds: &[Option<Arc<EventFd>>]) -> Result<(), Error> {
        let call =
            SetIrqs::Trigger { index: self.index.number(), start: u32::from(start), eventfds };
        let what = || {
            let named = eventfds.iter().flatten().count();
            format!("bind {named} vectors from {start} on")
        };
        self.device.set_irqs(call).map_err(|source| Error::SetIrqs {
            index: self.index,
            what: what(),
            source,
        })
    }
}

/// The number of vectors that can be enabled if the host has `had`. MSI has powers of two only (PCI
/// 3.0, 6.8.1.3).
fn usable(index: IrqIndex, had: Had) -> Had {
    match (index, had) {
        (IrqIndex::Msi, Had::Known(had)) => {
            Had::Known(had.checked_ilog2().map_or(0, |power| 1 << power))
        }
        _ => had,
    }
}

/// Disables an index, which unbinds all its eventfds.
pub(crate) fn disable(device: &dyn Device, index: IrqIndex) -> Result<(), Error> {
    let result = device.set_irqs(SetIrqs::Disable { index: index.number() });
    result.map_err(|source| Error::SetIrqs { index, what: "disable".to_owned(), source })
}

impl Drop for Binding {
    fn drop(&mut self) {
        let result = self.reconcile(&ProgrammedVectors::default());
        // Dropping the vectors stops their routes, so only a bound index is an error.
        if let Some(error) = result.err().filter(|_| self.state.enabled) {
            let Self { address, index, .. } = self;
            log::error!("{address}: {index} stays bound until the device is closed: {error}");
        }
    }
}

#[cfg(all(test, feature = "model"))]
mod tests {
    use super::*;
    use crate::host::MsiMessage;
    use crate::model::{Faults, Guest, PciDevice};

    #[test]
    fn msi_is_enabled_with_a_power_of_two() {
        for (had, msi) in [(0, 0), (1, 1), (2, 2), (3, 2), (7, 4), (8, 8), (31, 16), (32, 32)] {
            let usable =
                [IrqIndex::Msi, IrqIndex::Msix].map(|index| usable(index, Had::Known(had)));
            assert_eq!(usable, [Had::Known(msi), Had::Known(had)]);
        }
    }

    #[test]
    fn dropping_a_binding_disables_and_unroutes_its_vectors() -> std::io::Result<()> {
        let faults = Arc::new(Faults::default());
        let device = Arc::new(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD)?);
        let guest = Guest::new(faults);
        let address = "01:00.0".parse().map_err(std::io::Error::other)?;
        let (index, vectors) = (IrqIndex::Msix, guest.services().msi.allocate(65)?);
        let irq = device.irq(index.number())?;
        let mut binding = Binding::new(address, index, device.clone(), irq, vectors);
        let message = MsiMessage { address: 0xfee0_0000, data: 7 };
        let wanted =
            ProgrammedVectors { enabled: true, vectors: 65, unmasked: [(3, message)].into() };
        binding.reconcile(&wanted).map_err(std::io::Error::other)?;
        assert_eq!((device.irqs().bound.len(), guest.delivered().len()), (1, 1));
        drop(binding);
        assert_eq!((device.irqs().active, guest.delivered().len()), (None, 0));
        Ok(())
    }
}
