//! A graph of names, and the circles in it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Which name depends on which.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph(BTreeMap<String, BTreeSet<String>>);

impl Graph {
    /// Notes that `from` depends on `to`. A name does not depend on itself.
    pub fn add(&mut self, from: &str, to: &str) {
        if from != to {
            self.0.entry(from.to_owned()).or_default().insert(to.to_owned());
        }
    }

    /// What `from` depends on.
    pub fn of(&self, from: &str) -> impl Iterator<Item = &str> {
        self.0.get(from).into_iter().flatten().map(String::as_str)
    }

    /// The graph of other names for the same things; things without one are left out.
    pub fn contracted(&self, name: impl Fn(&str) -> Option<String>) -> Self {
        let mut graph = Self::default();
        for (from, all) in &self.0 {
            let pairs = all.iter().filter_map(|to| name(from).zip(name(to)));
            pairs.for_each(|(from, to)| graph.add(&from, &to));
        }
        graph
    }

    /// The shortest circle through each name that no circle before it has, as `a -> b -> a`.
    #[must_use]
    pub fn circles(&self) -> Vec<String> {
        let (mut circles, mut seen) = (Vec::new(), BTreeSet::new());
        for name in self.0.keys() {
            if let Some(circle) = self.circle(name)
                && circle.iter().all(|name| !seen.contains(name))
            {
                circles.push([circle.join(" -> "), name.clone()].join(" -> "));
                seen.extend(circle);
            }
        }
        circles
    }

    /// The names on any circle.
    #[must_use]
    pub fn knotted(&self) -> Vec<String> {
        self.0.keys().filter(|name| self.circle(name).is_some()).cloned().collect()
    }

    /// The shortest way from `start` to itself, less its end.
    fn circle(&self, start: &str) -> Option<Vec<String>> {
        let mut came_from = BTreeMap::<&str, &str>::new();
        let mut queue = VecDeque::from([start]);
        while let Some(name) = queue.pop_front() {
            for to in self.of(name) {
                if to == start {
                    return Some(way(&came_from, name));
                }
                if !came_from.contains_key(to) {
                    came_from.insert(to, name);
                    queue.push_back(to);
                }
            }
        }
        None
    }
}

fn way(came_from: &BTreeMap<&str, &str>, end: &str) -> Vec<String> {
    let steps = std::iter::successors(Some(end), |name| came_from.get(name).copied());
    let mut way: Vec<_> = steps.map(str::to_owned).collect();
    way.reverse();
    way
}
