//! Which resource manages which machine: two that name the same one must not take turns at switching it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Who claims a machine. The older resource wins; among equals the lower uid.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// When the resource was created, in seconds since 1970.
    pub created: i64,
    /// Its uid.
    pub uid: String,
    /// `namespace/name`, for people.
    pub name: String,
}

/// The machines that are claimed.
#[derive(Debug, Default)]
pub struct Machines(Mutex<HashMap<String, Claim>>);

impl Machines {
    /// Claims a machine, by the digest of its id. `Err` is who has it.
    pub fn claim(&self, machine: &str, claim: &Claim) -> Result<(), Claim> {
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The resource may name another machine than it did.
        claims.retain(|other, held| other == machine || held.uid != claim.uid);
        match claims.get(machine) {
            Some(held) if held < claim => Err(held.clone()),
            _ => {
                claims.insert(machine.to_owned(), claim.clone());
                Ok(())
            }
        }
    }

    /// Gives up what a resource has claimed.
    pub fn release(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, held| held.uid != uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(created: i64, uid: &str) -> Claim {
        Claim { created, uid: uid.into(), name: format!("infra/{uid}") }
    }

    #[test]
    fn the_older_resource_has_the_machine_whoever_comes_first() {
        let machines = Machines::default();
        assert_eq!(machines.claim("m", &claim(2, "young")), Ok(()));
        assert_eq!(machines.claim("m", &claim(1, "old")), Ok(()));
        assert_eq!(machines.claim("m", &claim(2, "young")), Err(claim(1, "old")));
        machines.release("old");
        assert_eq!(machines.claim("m", &claim(2, "young")), Ok(()));
    }

    #[test]
    fn a_resource_that_names_another_machine_gives_up_the_first() {
        let machines = Machines::default();
        machines.claim("m", &claim(1, "a")).unwrap();
        machines.claim("n", &claim(1, "a")).unwrap();
        assert_eq!(machines.claim("m", &claim(2, "b")), Ok(()));
    }
}
