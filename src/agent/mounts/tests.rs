mod double;

use super::*;
use crate::agent::fill::FillParts;
use crate::catalog::{Attributes, DirectoryEntry, History, Inode, PastRevision, Tree, TreeError, ViewError};
use crate::chunk::{Chunking, Piece, SourceError};
use crate::fs::{MountError, Restrictions};
use crate::model::{ChunkRef, Class, Place, Revision, UnixTime};
use crate::trust::{Keys, RepositoryCard, Root, RootVerdict, SignedCard, SignedRoot, VerifiedRoot};
use bytes::Bytes;
use double::{World, name};
use futures::future::BoxFuture;
use std::collections::BTreeSet;
use std::fs;
use tempfile::TempDir;

#[tokio::test]
async fn a_mount_shows_the_newest_revision_and_switches_to_a_newer_one() {
    let world = World::new();
    world.publish(1, 3600);
    let table = world.table();
    let mounted = table.mount(world.request()).await.unwrap();
    assert_eq!(mounted.revision, Some(Revision(1)));
    for status in [mounted, table.list().remove(0)] {
        assert_eq!((status.profile, status.lacks), (Some(Profile::SmallFiles), vec!["luck".to_owned()]));
    }
    assert_eq!(world.shown(), Some(1));
    world.publish(2, 3600);
    table.tend().await;
    assert_eq!((world.shown(), table.list()[0].revision), (Some(2), Some(Revision(2))));
    assert!(table.unmount(&world.request().directory).await.is_ok());
    assert_eq!((world.shown(), table.list()), (None, Vec::new()));
}

#[tokio::test]
async fn a_mount_does_not_switch_to_an_expired_root_and_none_begins_with_one() {
    let world = World::new();
    world.publish(1, 3600);
    let table = world.table();
    table.mount(world.request()).await.unwrap();
    world.publish(2, 0);
    table.tend().await;
    assert_eq!(world.shown(), Some(1));
    table.unmount(&world.request().directory).await.unwrap();
    let refusal = table.mount(world.request()).await.unwrap_err();
    assert!(refusal.message.contains("expired at"), "{refusal}");
}

#[tokio::test]
async fn a_mount_whose_root_has_expired_comes_back_after_a_restart_and_says_so() {
    let world = World::new();
    world.publish(1, 3600);
    let table = world.table();
    table.mount(world.request()).await.unwrap();
    table.unmount_all(Duration::ZERO).await;
    // The only root that is known now is an expired one.
    world.publish(2, 0);
    let table = world.table();
    table.tend().await;
    let mounts = table.list();
    assert_eq!((mounts[0].revision, mounts[0].expired), (Some(Revision(2)), true));
}

#[tokio::test]
async fn mounts_survive_a_restart_and_a_vanished_mount_point_is_reported() {
    let world = World::new();
    world.publish(1, 3600);
    let table = world.table();
    table.mount(world.request()).await.unwrap();
    table.unmount_all(Duration::ZERO).await;
    assert_eq!(world.shown(), None);
    world.table().tend().await;
    assert_eq!(world.shown(), Some(1));

    world.kernel.shown.lock().unwrap().clear();
    fs::remove_dir(&world.request().directory).unwrap();
    let table = world.table();
    table.tend().await;
    let problem = table.list()[0].problem.clone().unwrap();
    assert!(problem.contains("does not exist"), "{problem}");
    // Once the directory is back, so is the mount.
    fs::create_dir(&world.request().directory).unwrap();
    table.tend().await;
    assert_eq!(table.list()[0].problem, None);
}

#[tokio::test]
async fn a_mount_that_was_left_goes_on_with_what_it_showed_and_catches_up() {
    let world = World::new();
    world.kernel.keeps.store(true, Ordering::SeqCst);
    world.publish(1, 3600);
    let table = world.table();
    table.mount(world.request()).await.unwrap();
    table.leave_all(Duration::ZERO).await;
    assert_eq!(world.shown(), Some(1), "whoever is inside stays");
    world.publish(2, 3600);
    let table = world.table();
    table.let_go_others().await;
    table.tend().await;
    assert_eq!((world.shown(), table.list()[0].revision), (Some(1), Some(Revision(1))));
    table.tend().await;
    assert_eq!((world.shown(), table.list()[0].revision), (Some(2), Some(Revision(2))));

    // What nobody wants any more does not stay for ever.
    table.leave_all(Duration::ZERO).await;
    fs::remove_file(world.dir.path().join("mounts.json")).unwrap();
    world.table().let_go_others().await;
    assert_eq!(world.shown(), None);
}

#[tokio::test]
async fn what_was_left_on_a_directory_is_not_ended_while_somebody_mounts_there() {
    let world = World::new();
    world.publish(1, 3600);
    let directory = world.request().directory;
    let shown = Shown::newest(&world.registry.newest_root(&name()).unwrap());
    world.kernel.left.lock().unwrap().insert(directory.clone(), shown);
    *world.kernel.silent.lock().unwrap() = Some("/silent".to_owned());
    let table = world.table();
    let options = MountOptions { path: "/silent".to_owned(), ..MountOptions::default() };
    let mut mounting = Box::pin(table.mount(MountRequest { options, ..world.request() }));
    let is_left = || world.kernel.left.lock().unwrap().contains_key(&directory);
    // Its catalogs are awaited.
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut mounting).await.is_err());
    table.let_go_others().await;
    assert!(is_left());
    drop(mounting);
    table.let_go_others().await;
    assert!(!is_left(), "nobody mounts there any more");
}

#[tokio::test]
async fn a_mount_that_was_left_and_cannot_be_taken_over_yet_stays_until_it_can() {
    let world = World::new();
    world.kernel.keeps.store(true, Ordering::SeqCst);
    world.publish(1, 3600);
    for automatic in [false, true] {
        let table = world.table();
        let mount = Remembered { automatic, ..world.request().into() };
        table.mount_remembered(mount).await.unwrap();
        table.leave_all(Duration::ZERO).await;
        world.kernel.catalogs.store(false, Ordering::SeqCst);
        let table = world.table();
        table.let_go_others().await;
        table.tend().await;
        let problem = table.list()[0].problem.clone().unwrap();
        assert!(problem.contains("no source"), "{problem}");
        assert_eq!(world.shown(), Some(1), "whoever is inside waits");
        world.kernel.catalogs.store(true, Ordering::SeqCst);
        table.tend().await;
        assert_eq!((world.shown(), table.list()[0].revision), (Some(1), Some(Revision(1))));
        // One that is not wanted any more is let go, taken over or not.
        table.leave_all(Duration::ZERO).await;
        world.kernel.catalogs.store(false, Ordering::SeqCst);
        let table = world.table();
        table.tend().await;
        table.unmount(&world.request().directory).await.unwrap();
        assert_eq!((world.shown(), table.list()), (None, Vec::new()));
        world.kernel.catalogs.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_mount_that_was_unmounted_while_no_agent_ran_is_forgotten_unless_the_agent_was_started_with_it() {
    let world = World::new();
    world.kernel.keeps.store(true, Ordering::SeqCst);
    world.publish(1, 3600);
    for declared in [false, true] {
        let table = world.table();
        table.mount(world.request()).await.unwrap();
        table.leave_all(Duration::ZERO).await;
        world.kernel.shown.lock().unwrap().clear();
        let table = world.table();
        if declared {
            table.declare(vec![world.request()]).unwrap();
        }
        table.tend().await;
        assert_eq!((world.shown().is_some(), table.list().len()), (declared, usize::from(declared)));
        assert_eq!(world.table().list().len(), usize::from(declared), "for good");
    }
}

#[tokio::test(start_paused = true)]
async fn a_mount_that_takes_for_ever_keeps_no_other_waiting_nor_the_end() {
    let world = World::new();
    world.publish(1, 3600);
    world.kernel.paths.lock().unwrap().extend([(1, "/slow"), (2, "/slow")]);
    let table = Arc::new(world.table());
    let slow = world.dir.path().join("slow");
    fs::create_dir(&slow).unwrap();
    let options = MountOptions { path: "/slow".to_owned(), ..MountOptions::default() };
    let request = MountRequest { directory: slow.clone(), options, ..world.request() };
    table.mount(request.clone()).await.unwrap();
    table.mount(world.request()).await.unwrap();
    // Its newest revision cannot be had, and nobody says so.
    world.publish(2, 3600);
    *world.kernel.silent.lock().unwrap() = Some("/slow".to_owned());
    let tending = tokio::spawn({
        let table = table.clone();
        async move { table.tend().await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.shown(), Some(2), "the other has switched");
    world.publish(3, 3600);
    let again = tokio::time::timeout(Duration::from_secs(1), table.tend()).await;
    assert!(again.is_ok() && world.shown() == Some(3), "and does so again");
    table.unmount(&world.request().directory).await.unwrap();
    table.mount(world.request()).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), table.leave_all(Duration::from_secs(10))).await;
    assert!(ended.is_ok() && world.kernel.shown.lock().unwrap().is_empty());
    tending.abort();
    assert_eq!(world.table().list().len(), 2, "remembered");
    assert_eq!(table.mount(world.request()).await.unwrap_err().kind, RefusalKind::Unavailable);
    assert_eq!(world.table().list().len(), 2, "as it was when it ended");
}

#[tokio::test]
async fn two_mounts_that_are_declared_for_one_directory_are_refused() {
    let world = World::new();
    let other = MountRequest { repository: "other.example.org".parse().unwrap(), ..world.request() };
    let said = world.table().declare(vec![world.request(), other]).unwrap_err().to_string();
    let names = [world.request().repository.to_string(), "other.example.org".to_owned()];
    assert!(names.iter().all(|name| said.contains(name)), "{said}");
}

#[tokio::test]
async fn a_mount_point_is_the_same_by_whatever_links_it_is_named() {
    let world = World::new();
    world.publish(1, 3600);
    let link = world.dir.path().join("link");
    std::os::unix::fs::symlink(world.dir.path(), &link).unwrap();
    let real = world.request().directory.canonicalize().unwrap();
    let table = world.table();
    let request = MountRequest { directory: link.join("mnt"), ..world.request() };
    table.declare(vec![request.clone()]).unwrap();
    table.tend().await;
    assert_eq!((table.list().len(), &table.list()[0].directory), (1, &real));
    assert_eq!(table.mount(request.clone()).await.unwrap_err().kind, RefusalKind::Conflict);
    table.unmount(&link.join("mnt")).await.unwrap();
    assert_eq!(table.mount(request).await.unwrap().directory, real);
}

#[tokio::test]
async fn a_mount_point_that_leads_elsewhere_after_a_restart_is_not_mounted_and_the_agent_says_so() {
    let world = World::new();
    world.publish(1, 3600);
    let real = world.dir.path().canonicalize().unwrap();
    let (parent, aside, victim) = (real.join("parent"), real.join("aside"), real.join("victim"));
    fs::create_dir_all(parent.join("mnt")).unwrap();
    fs::create_dir_all(victim.join("mnt")).unwrap();
    let table = world.table();
    let directory = parent.join("mnt");
    table.mount(MountRequest { directory: directory.clone(), ..world.request() }).await.unwrap();
    table.unmount_all(Duration::ZERO).await;
    // What the owner of the parent can do.
    fs::rename(&parent, &aside).unwrap();
    std::os::unix::fs::symlink(&victim, &parent).unwrap();
    let table = world.table();
    table.tend().await;
    table.tend().await;
    assert_eq!(*world.kernel.shown.lock().unwrap(), BTreeMap::new());
    let status = table.list().remove(0);
    let problem = status.problem.unwrap();
    let (named, leads) = (directory.display().to_string(), victim.join("mnt").display().to_string());
    assert_eq!(status.directory, directory);
    assert!(problem.contains(&format!("{named} leads elsewhere now: {leads}")), "{problem}");
    // Where it leads can be mounted on by whoever wants that, and the line be taken away.
    table.mount(MountRequest { directory: directory.clone(), ..world.request() }).await.unwrap();
    assert_eq!(table.list().len(), 2);
    table.unmount(&directory).await.unwrap();
    assert_eq!((table.list().len(), table.list()[0].directory.clone()), (1, victim.join("mnt")));
    table.unmount(&directory).await.unwrap();
    assert_eq!(table.list(), Vec::new());
    // When the way is as it was, so is the mount.
    table.mount(MountRequest { directory: aside.join("mnt"), ..world.request() }).await.unwrap();
    table.unmount_all(Duration::ZERO).await;
    let table = world.table();
    table.tend().await;
    assert_eq!((&table.list()[0].directory, &table.list()[0].problem), (&aside.join("mnt"), &None));
}

#[tokio::test]
async fn what_an_earlier_agent_remembers_of_a_mount_holds_and_where_it_says_nothing_the_usual_does() {
    let world = World::new();
    let file = world.dir.path().join("mounts.json");
    let line = |directory: &str, options: &str| {
        format!(
            r#"{{"repository":"sw.example.org","directory":"/{directory}","fill":false,"options":{options}}}"#
        )
    };
    let says = [
        line("a", "{}"),
        line("b", r#"{"restrict":{"nosuid":false,"nodev":false,"noexec":true}}"#),
        line("c", r#"{"restrict":{"nosuid":true,"nodev":false,"noexec":false}}"#),
    ];
    fs::write(&file, format!(r#"{{"version":1,"mounts":[{}]}}"#, says.join(","))).unwrap();
    let restrict: Vec<_> = world.table().list().iter().map(|mount| mount.options.restrict).collect();
    // That there are devices nobody can have meant.
    let honoured = Restrictions { nosuid: false, noexec: true, nodev: true };
    assert_eq!(restrict, [Restrictions::default(), honoured, Restrictions::default()]);
}

#[tokio::test]
async fn what_is_mounted_because_somebody_looked_is_mounted_as_it_was_asked_for() {
    let world = World::new();
    world.publish(1, 3600);
    world.publish(2, 3600);
    let table = world.table();
    let request = MountRequest { fill: true, ..showing(&world, Choice::Revision(Revision(1))) };
    table.mount_automatically(request.clone()).await.unwrap();
    let status = table.list().remove(0);
    assert_eq!((world.shown(), status.options, status.automatic), (Some(1), request.options, true));
    assert!(status.fill.is_some());
}

#[tokio::test]
async fn what_cannot_be_had_now_is_tried_again() {
    let world = World::new();
    world.publish(1, 3600);
    let table = world.table();
    table.mount(world.request()).await.unwrap();
    world.kernel.catalogs.store(false, Ordering::SeqCst);
    world.publish(2, 3600);
    table.tend().await;
    assert_eq!(world.shown(), Some(1));
    world.kernel.catalogs.store(true, Ordering::SeqCst);
    table.tend().await;
    assert_eq!(world.shown(), Some(2));
}

#[tokio::test]
async fn a_mount_that_was_unmounted_by_hand_is_forgotten_unless_the_agent_was_started_with_it() {
    let world = World::new();
    world.publish(1, 3600);
    let table = world.table();
    table.mount(world.request()).await.unwrap();
    world.kernel.shown.lock().unwrap().clear();
    table.tend().await;
    assert_eq!((world.shown(), table.list()), (None, Vec::new()));
    assert_eq!(world.table().list(), Vec::new(), "for good");
    // At once, and not only when the table is looked at next.
    table.mount(world.request()).await.unwrap();
    world.kernel.shown.lock().unwrap().clear();
    table.mount(world.request()).await.unwrap();

    let table = world.table();
    table.declare(vec![world.request()]).unwrap();
    table.tend().await;
    world.kernel.shown.lock().unwrap().clear();
    table.tend().await;
    assert!(table.list()[0].problem.as_ref().unwrap().contains("somebody else"));
    table.tend().await;
    assert_eq!(world.shown(), Some(1));
}

#[tokio::test]
async fn a_mount_whose_session_was_ended_comes_back() {
    let world = World::new();
    world.publish(1, 3600);
    let table = world.table();
    table.mount(world.request()).await.unwrap();
    world.kernel.dead.lock().unwrap().insert(world.request().directory);
    table.tend().await;
    assert!(table.list()[0].problem.as_ref().unwrap().contains("somebody else"));
    table.tend().await;
    assert_eq!(world.shown(), Some(1));
}

fn showing(world: &World, show: Choice) -> MountRequest {
    MountRequest { options: MountOptions { show, ..MountOptions::default() }, ..world.request() }
}

#[tokio::test]
async fn a_revision_that_was_chosen_stays_whatever_is_published_and_over_restarts() {
    let world = World::new();
    (1..=3).for_each(|revision| world.publish(revision, 3600));
    world.kernel.history.lock().unwrap().tag("stable", Revision(2)).unwrap();
    let table = world.table();
    let missing = table.mount(showing(&world, Choice::Revision(Revision(9)))).await.unwrap_err();
    assert_eq!((missing.kind, missing.hint.as_deref()), (RefusalKind::NotFound, Some("there are 1-3")));
    let mounted = table.mount(showing(&world, Choice::Tag("stable".into()))).await.unwrap();
    assert_eq!(mounted.revision, Some(Revision(2)));
    world.publish(4, 3600);
    // A tag that is moved moves no mount.
    world.kernel.history.lock().unwrap().tag("stable", Revision(4)).unwrap();
    table.tend().await;
    assert_eq!(world.shown(), Some(2));
    table.unmount_all(Duration::ZERO).await;
    let table = world.table();
    table.tend().await;
    assert_eq!((world.shown(), table.list()[0].revision), (Some(2), Some(Revision(2))));
    // Nor does it end with the root under which it was chosen.
    world.publish(5, 0);
    table.tend().await;
    assert_eq!((world.shown(), table.list()[0].expired), (Some(2), false));
}

#[tokio::test]
async fn what_is_declared_with_other_options_stays_with_the_revision_that_was_chosen() {
    let world = World::new();
    (1..=3).for_each(|revision| world.publish(revision, 3600));
    world.kernel.history.lock().unwrap().tag("stable", Revision(2)).unwrap();
    let table = world.table();
    table.mount(showing(&world, Choice::Tag("stable".into()))).await.unwrap();
    table.unmount_all(Duration::ZERO).await;
    world.kernel.history.lock().unwrap().tag("stable", Revision(3)).unwrap();
    let mut request = showing(&world, Choice::Tag("stable".into()));
    request.options.restrict.noexec = true;
    let table = world.table();
    table.declare(vec![request.clone()]).unwrap();
    table.tend().await;
    let status = table.list().remove(0);
    assert_eq!((world.shown(), status.options), (Some(2), request.options));
    // What is to be chosen otherwise is chosen anew.
    table.unmount_all(Duration::ZERO).await;
    let table = world.table();
    table.declare(vec![showing(&world, Choice::Newest)]).unwrap();
    table.tend().await;
    assert_eq!(world.shown(), Some(3));
}

#[tokio::test]
async fn a_revision_that_is_published_a_moment_ago_is_asked_of_the_strata() {
    let world = World::new();
    world.publish(1, 3600);
    let table = world.table();
    *world.kernel.stratum.lock().unwrap() = Some(world.root(2, 3600));
    let mounted = table.mount(showing(&world, Choice::Revision(Revision(2)))).await.unwrap();
    assert_eq!(mounted.revision, Some(Revision(2)));
}

#[tokio::test]
async fn a_directory_that_a_new_revision_lacks_goes_on_being_shown_from_the_old_one_which_is_said() {
    let world = World::new();
    world.kernel.paths.lock().unwrap().extend([(1, "/releases/1"), (3, "/releases/1")]);
    let table = world.table();
    world.publish(1, 3600);
    let options = MountOptions { path: "releases/1/".into(), ..MountOptions::default() };
    let request = MountRequest { options, ..world.request() };
    let mounted = table.mount(request.clone()).await.unwrap();
    assert_eq!((mounted.revision, mounted.options.path.as_str()), (Some(Revision(1)), "/releases/1"));
    world.publish(2, 3600);
    table.tend().await;
    let status = table.list().remove(0);
    let note = status.note.unwrap();
    assert_eq!((world.shown(), status.problem), (Some(1), None));
    assert!(note.contains("revision 2") && note.contains("there is no /releases/1"), "{note}");
    world.publish(3, 3600);
    table.tend().await;
    assert_eq!((world.shown(), &table.list()[0].note), (Some(3), &None));
    table.unmount(&request.directory).await.unwrap();
    world.publish(4, 3600);
    let refusal = table.mount(request).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::NotFound, "{refusal}");
}

#[tokio::test]
async fn what_is_mounted_because_somebody_looked_goes_when_it_is_idle_and_does_not_come_by_itself() {
    let world = World::new();
    world.publish(1, 3600);
    let directory = world.request().directory;
    let table = world.table();
    table.mount_automatically(world.request()).await.unwrap();
    assert!(table.list()[0].automatic);
    world.kernel.busy.lock().unwrap().insert(directory.clone());
    assert!(!table.unmount_idle(&directory).await);
    assert_eq!(world.shown(), Some(1));
    world.kernel.busy.lock().unwrap().clear();
    assert!(table.unmount_idle(&directory).await);
    assert_eq!((world.shown(), table.list()), (None, Vec::new()));

    // A successor goes on with it, if it was left to one; else it is forgotten.
    world.kernel.keeps.store(true, Ordering::SeqCst);
    table.mount_automatically(world.request()).await.unwrap();
    table.leave_all(Duration::ZERO).await;
    let table = world.table();
    table.tend().await;
    assert!(table.list()[0].automatic && world.shown() == Some(1));
    table.unmount_all(Duration::ZERO).await;
    let table = world.table();
    table.mount_automatically(world.request()).await.unwrap();
    assert_eq!(world.shown(), Some(1), "whoever looks while the agent starts finds it");
    table.unmount_all(Duration::ZERO).await;
    let table = world.table();
    table.tend().await;
    assert_eq!((world.shown(), table.list()), (None, Vec::new()));
    // Nor is it lost with a root that expires while nobody looks.
    world.publish(2, 0);
    table.mount_automatically(world.request()).await.unwrap();
    assert!(table.list()[0].expired && table.unmount_idle(&directory).await);
    world.publish(3, 3600);
    // What was asked for by name does not go when it is idle.
    table.mount(world.request()).await.unwrap();
    assert!(!table.unmount_idle(&directory).await);
}

#[tokio::test]
async fn without_a_known_root_a_stratum_is_asked_and_failure_says_what_to_do() {
    let world = World::new();
    let table = world.table();
    let refusal = table.mount(world.request()).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Unavailable);
    assert!(refusal.message.contains("http://stratum"), "{refusal}");
    *world.kernel.stratum.lock().unwrap() = Some(world.root(1, 3600));
    assert_eq!(table.mount(world.request()).await.unwrap().revision, Some(Revision(1)));
}

#[tokio::test]
async fn wrong_requests_are_refused_with_a_hint() {
    let world = World::new();
    world.publish(1, 3600);
    let table = world.table();
    let relative = MountRequest { directory: "mnt".into(), ..world.request() };
    assert_eq!(table.mount(relative).await.unwrap_err().kind, RefusalKind::Invalid);
    let missing = MountRequest { directory: "/nowhere/at/all".into(), ..world.request() };
    let refusal = table.mount(missing).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::NotFound, "{refusal}");
    let unknown = MountRequest { repository: "other.example".parse().unwrap(), ..world.request() };
    let refusal = table.mount(unknown).await.unwrap_err();
    assert!(refusal.hint.unwrap().contains("starling repo add other.example@FINGERPRINT"));
    table.mount(world.request()).await.unwrap();
    let refusal = table.mount(world.request()).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Conflict);
    let refusal = table.unmount(Path::new("/elsewhere")).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::NotFound);
}

#[tokio::test]
async fn a_list_that_cannot_be_written_keeps_nothing_from_being_mounted_and_is_written_later() {
    let world = World::new();
    world.publish(1, 3600);
    let in_the_way = world.dir.path().join("mounts.new");
    fs::create_dir(&in_the_way).unwrap();
    let table = world.table();
    table.declare(vec![world.request()]).unwrap();
    table.tend().await;
    assert_eq!(world.shown(), Some(1));
    let trouble = table.trouble().unwrap();
    assert!(trouble.contains("mounts.json") && trouble.contains("next start"), "{trouble}");
    fs::remove_dir(&in_the_way).unwrap();
    table.tend().await;
    assert_eq!(table.trouble(), None);
    table.unmount_all(Duration::ZERO).await;
    world.table().tend().await;
    assert_eq!(world.shown(), Some(1), "it was remembered in the end");
}

#[tokio::test]
async fn the_strata_are_asked_for_newer_roots_of_what_is_mounted_and_nothing_else() {
    let world = World::new();
    world.publish(1, 3600);
    let table = world.table();
    *world.kernel.stratum.lock().unwrap() = Some(world.root(2, 3600));
    assert!(!table.ask_strata(true).await, "nothing is mounted");
    table.mount(world.request()).await.unwrap();
    assert_eq!(world.shown(), Some(1));
    assert!(table.ask_strata(true).await);
    table.tend().await;
    assert_eq!(world.shown(), Some(2));
    assert!(!table.ask_strata(true).await, "it is known by now");
    // Its card was added by hand: no member tells of newer roots, so that it is among those that are asked for always.
    *world.kernel.stratum.lock().unwrap() = Some(world.root(3, 3600));
    assert!(table.ask_strata(false).await);
    // Once an authority has signed its card, members tell, and the strata are asked by who is alone.
    let authority = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let card = world.registry.card(&name()).unwrap();
    let signed = SignedCard::sign(&card, authority.as_bytes()).unwrap();
    world.registry.accept_card(&signed, &authority.verifying_key().to_bytes()).unwrap();
    *world.kernel.stratum.lock().unwrap() = Some(world.root(4, 3600));
    assert!(!table.ask_strata(false).await);
    assert!(table.ask_strata(true).await);
    *world.kernel.stratum.lock().unwrap() = None;
    assert!(!table.ask_strata(true).await);
}

#[test]
fn a_damaged_list_of_mounts_is_an_error_and_its_file_is_left_to_the_agent_to_name() {
    let world = World::new();
    let file = world.dir.path().join("mounts.json");
    for content in ["{", r#"{"version":9,"mounts":[]}"#] {
        fs::write(&file, content).unwrap();
        let error = list::read(&file).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(
            !error.to_string().contains("mounts.json"),
            "the agent's error names it, with what to do: {error}"
        );
    }
    fs::remove_file(&file).unwrap();
    assert_eq!(list::read(&file).unwrap(), Vec::new());
}

#[tokio::test(start_paused = true)]
async fn a_fill_begins_anew_with_each_revision_and_after_a_restart() {
    let world = World::new();
    world.publish(1, 3600);
    let table = world.table();
    let mounted = table.mount(MountRequest { fill: true, ..world.request() }).await.unwrap();
    assert!(!mounted.fill.unwrap().complete);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(table.list()[0].fill.as_ref().unwrap().problem.as_ref().unwrap().contains("nobody"));
    world.publish(2, 3600);
    table.tend().await;
    assert_eq!(table.list()[0].fill.as_ref().unwrap().problem, None, "the second revision's, just begun");
    table.unmount_all(Duration::ZERO).await;
    let again = world.table();
    again.tend().await;
    assert!(again.list()[0].fill.is_some());
}

#[tokio::test]
async fn a_mount_outside_of_the_certificate_s_scope_says_so() {
    let world = World::new();
    world.publish(1, 1_000);
    let table = world.table();
    assert_eq!(table.mount(world.request()).await.unwrap().note, None);
    world.kernel.out_of_scope.store(true, Ordering::SeqCst);
    assert!(table.list()[0].note.as_ref().unwrap().contains("certificate does not cover"));
    let other = MountRequest { repository: "other.example".parse().unwrap(), ..world.request() };
    table.unmount(&world.request().directory).await.unwrap();
    let hint = table.mount(other).await.unwrap_err().hint.unwrap();
    assert!(
        hint.contains("certificate does not cover") && hint.contains("repo add other.example@"),
        "{hint}"
    );
}
