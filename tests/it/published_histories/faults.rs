//! What fails while histories happen, and what a server loses once.

use std::path::PathBuf;
use std::time::Duration;

use pgsluice::demo::cluster::{Cluster, StopMode};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{RwLock, watch};

use super::history::History;
use crate::support::copies::{promote, restore, save, standby, wait_replayed};
use crate::support::database::Database;
use crate::support::service::Service;
use crate::support::world::World;

/// How often the service or a server fails.
const FAULT_EVERY: Duration = Duration::from_secs(4);

/// Kills or stops the service, or crashes a server, again and again until told to stop. Returns the service.
pub(super) async fn fail(
    world: &mut World,
    mut service: Service,
    seed: u64,
    stage: &RwLock<()>,
    mut stop: watch::Receiver<()>,
) -> Service {
    let mut random = StdRng::seed_from_u64(seed ^ 0xfa17);
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => return service,
            () = tokio::time::sleep(FAULT_EVERY) => {}
        }
        match random.random_range(0..5) {
            0 => service.kill9().await,
            1 => assert_eq!(service.sigterm().await, 0),
            which => {
                let _none_writes = stage.write().await;
                let server = if which == 2 { world.target_server() } else { world.publisher_server() };
                server.restart(StopMode::Immediate).await.expect("a server that crashes comes back");
                continue;
            }
        }
        let pause = random.random_range(0..2000);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        service = world.run();
    }
}

/// What happens to a server at the end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disaster {
    /// The publisher goes back to an earlier state.
    PublisherRestored,
    /// The target goes back to an earlier state.
    TargetRestored,
    /// A standby takes the publisher's place. It has every transaction, and no slots.
    PublisherPromoted,
}

/// What a disaster needs from before it.
pub(super) enum Before {
    Saved(PathBuf),
    Standby(Box<Cluster>),
}

impl Disaster {
    /// The disaster that `PGSLUICE_DISASTER` names, if any.
    pub(super) fn asked_for() -> Option<Self> {
        let asked = std::env::var("PGSLUICE_DISASTER").ok().filter(|name| !name.is_empty())?;
        let known = [
            ("publisher-restored", Self::PublisherRestored),
            ("target-restored", Self::TargetRestored),
            ("publisher-promoted", Self::PublisherPromoted),
        ];
        let found = known.into_iter().find(|(name, _)| *name == asked);
        Some(found.expect("PGSLUICE_DISASTER names one").1)
    }

    fn server(self, world: &mut World) -> &mut Cluster {
        match self {
            Self::PublisherRestored | Self::PublisherPromoted => world.publisher_server(),
            Self::TargetRestored => world.target_server(),
        }
    }

    /// Keeps the state that is gone back to.
    pub(super) async fn prepare(self, world: &mut World, histories: &mut [History]) -> Before {
        if self == Self::PublisherPromoted {
            return Before::Standby(Box::new(standby(world.publisher_server(), &[]).await));
        }
        for history in histories {
            history.remember();
        }
        let dir = world.dir().to_owned();
        let server = self.server(world);
        server.stop(StopMode::Fast).await.expect("a server stops");
        let saved = save(server, &dir);
        server.launch().await.expect("a stopped server starts");
        Before::Saved(saved)
    }

    /// Strikes while no service runs.
    pub(super) async fn strike(self, before: Before, world: &mut World, histories: &mut [History]) {
        match before {
            Before::Standby(standby) => {
                wait_replayed(world.publisher_server(), &standby).await;
                world.publisher_server().stop(StopMode::Immediate).await.expect("a server can be killed");
                promote(&standby).await;
                for history in histories {
                    history.publisher = Database::on(&standby, &history.name);
                }
                world.move_publisher(*standby);
            }
            Before::Saved(saved) => {
                let server = self.server(world);
                server.stop(StopMode::Immediate).await.expect("a server can be killed");
                restore(server, &saved);
                server.launch().await.expect("a restored server starts");
                for history in histories {
                    match self {
                        Self::TargetRestored => history.target_went_back().await,
                        _ => history.publisher_went_back().await,
                    }
                }
            }
        }
    }
}
