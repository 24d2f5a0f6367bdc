//! The order in which a store takes paths: each behind what it refers to.

use std::collections::HashMap;

use crate::nix::{Closure, PathInfo, StorePath};

/// Why paths are no closure.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoClosure {
    /// A path is referred to and not there.
    #[error("{path} is missing")]
    Missing {
        /// The path.
        path: StorePath,
    },
    /// A path refers to itself by way of others, which no store allows.
    #[error("{path} refers to itself by way of other paths")]
    Cycle {
        /// The path.
        path: StorePath,
    },
}

#[derive(Clone, Copy, PartialEq)]
enum Mark {
    New,
    Open,
    Done,
}

/// The closure of `root` out of `infos`: the same order for the same paths, whatever order they come in.
pub(super) fn closure(root: &StorePath, infos: Vec<PathInfo>) -> Result<Closure, NoClosure> {
    let place: HashMap<&StorePath, usize> = infos.iter().enumerate().map(|(place, info)| (&info.path, place)).collect();
    let find = |path: &StorePath| place.get(path).copied().ok_or_else(|| NoClosure::Missing { path: path.clone() });
    let mut marks = vec![Mark::New; infos.len()];
    let mut order = Vec::with_capacity(infos.len());
    // A stack of our own: chains of references are long. Each entry is a path and those of its references to visit.
    let mut stack = Vec::new();
    let mut next = Some(find(root)?);
    loop {
        if let Some(here) = next.take() {
            marks[here] = Mark::Open;
            let mut references: Vec<&StorePath> = infos[here].references.iter().filter(|path| **path != infos[here].path).collect();
            references.sort_unstable_by(|a, b| b.cmp(a));
            stack.push((here, references));
        }
        let Some((here, references)) = stack.last_mut() else { break };
        let Some(reference) = references.pop() else {
            marks[*here] = Mark::Done;
            order.push(*here);
            stack.pop();
            continue;
        };
        let there = find(reference)?;
        match marks[there] {
            Mark::New => next = Some(there),
            Mark::Open => return Err(NoClosure::Cycle { path: reference.clone() }),
            Mark::Done => {}
        }
    }
    let mut infos: Vec<Option<PathInfo>> = infos.into_iter().map(Some).collect();
    let paths = order.into_iter().filter_map(|place| infos[place].take()).collect();
    Ok(Closure { root: root.clone(), paths })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(n: usize) -> StorePath {
        format!("/nix/store/{}-p{n}", "0".repeat(32)).parse().unwrap()
    }

    fn info(n: usize, references: &[usize]) -> PathInfo {
        PathInfo {
            path: path(n),
            deriver: None,
            references: references.iter().map(|n| path(*n)).collect(),
            nar_hash: String::new(),
            nar_size: 0,
            signatures: vec![],
            content_address: None,
        }
    }

    #[test]
    fn a_path_comes_behind_what_it_refers_to_and_may_refer_to_itself() {
        let sorted = closure(&path(0), vec![info(0, &[0, 1, 2]), info(1, &[2, 1]), info(2, &[])]).unwrap();
        assert_eq!(sorted.paths.iter().map(|i| i.path.name()).collect::<Vec<_>>(), ["p2", "p1", "p0"]);
    }

    #[test]
    fn a_missing_path_and_a_cycle_are_errors() {
        assert_eq!(closure(&path(0), vec![info(0, &[1])]), Err(NoClosure::Missing { path: path(1) }));
        assert_eq!(closure(&path(9), vec![]), Err(NoClosure::Missing { path: path(9) }));
        let cycle = vec![info(0, &[1]), info(1, &[2]), info(2, &[1])];
        assert_eq!(closure(&path(0), cycle), Err(NoClosure::Cycle { path: path(1) }));
    }

    #[test]
    fn a_long_chain_does_not_overflow_the_stack() {
        let infos = (0..100_000).map(|n| if n == 0 { info(0, &[]) } else { info(n, &[n - 1]) }).collect();
        assert_eq!(closure(&path(99_999), infos).unwrap().paths.len(), 100_000);
    }

    proptest! {
        #[test]
        fn order_does_not_depend_on_how_the_store_lists_them(
            (references, shuffled) in (1usize..20).prop_flat_map(|n| {
                let references = (0..n).map(|i| prop::collection::vec(0..=i, 0..4)).collect::<Vec<_>>();
                (references, Just((0..n).collect::<Vec<_>>()).prop_shuffle())
            }),
        ) {
            let root = references.len() - 1;
            let listed = |order: &[usize]| order.iter().map(|n| info(*n, &references[*n])).collect::<Vec<_>>();
            let sorted = closure(&path(root), listed(&(0..=root).collect::<Vec<_>>())).unwrap();
            prop_assert_eq!(&sorted, &closure(&path(root), listed(&shuffled)).unwrap());
            prop_assert_eq!(&sorted.paths.last().unwrap().path, &path(root));
            for (at, info) in sorted.paths.iter().enumerate() {
                for reference in info.references.iter().filter(|r| **r != info.path) {
                    prop_assert!(sorted.paths[..at].iter().any(|i| i.path == *reference));
                }
            }
        }
    }
}
