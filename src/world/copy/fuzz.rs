//! The serve protocol as a hostile machine speaks it, for fuzzing.

use std::io;

use bytes::Bytes;

use super::serve::{Serve, Sink};
use crate::nix::StorePath;

/// A machine that takes everything.
struct Taken;

impl Sink for Taken {
    async fn send(&mut self, _: Bytes) -> io::Result<()> {
        Ok(())
    }

    async fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `data` is all that the machine ever says, behind a good greeting.
pub(crate) fn serve_protocol(data: &[u8]) {
    let path = |name: char| format!("/nix/store/00000000000000000000000000000000-{name}").parse::<StorePath>();
    let (Ok(a), Ok(b)) = (path('a'), path('b')) else { return };
    let greeting = [0x5452_eecb_u64.to_le_bytes(), 0x207_u64.to_le_bytes()].concat();
    let said = [&greeting, data].concat();
    futures::executor::block_on(async {
        if let Ok(valid) = Serve::new(Taken, &said[..]).valid(&[&a, &b], true, false).await {
            assert!(valid.len() <= 2);
        }
        let _ = Serve::new(Taken, &said[..]).closure(&a).await;
        let _ = Serve::new(Taken, &said[..]).infos(&[a.clone(), b]).await;
        let _ = Serve::new(Taken, data).closure(&a).await;
    });
}
