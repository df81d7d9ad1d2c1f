//! The kernel, a mesh and a registry as the table of mounts sees them, without any.

use super::*;

/// A tree that nobody looks into: its totals tell which revision it belongs to.
struct Marked(u64);

impl Tree for Marked {
    fn lookup<'a>(
        &'a self,
        directory: Inode,
        _: &'a [u8],
    ) -> BoxFuture<'a, Result<Option<Attributes>, TreeError>> {
        Box::pin(async move { Err(TreeError::UnknownInode(directory)) })
    }
    fn list(&self, directory: Inode) -> BoxFuture<'_, Result<Arc<[DirectoryEntry]>, TreeError>> {
        Box::pin(async move { Err(TreeError::UnknownInode(directory)) })
    }
    fn attributes(&self, inode: Inode) -> BoxFuture<'_, Result<Attributes, TreeError>> {
        Box::pin(async move { Err(TreeError::UnknownInode(inode)) })
    }
    fn parent(&self, inode: Inode) -> BoxFuture<'_, Result<Inode, TreeError>> {
        Box::pin(async move { Err(TreeError::UnknownInode(inode)) })
    }
    fn link_target(&self, inode: Inode) -> BoxFuture<'_, Result<Arc<[u8]>, TreeError>> {
        Box::pin(async move { Err(TreeError::UnknownInode(inode)) })
    }
    fn extended_attributes(
        &self,
        inode: Inode,
    ) -> BoxFuture<'_, Result<Arc<[(Box<[u8]>, Box<[u8]>)]>, TreeError>> {
        Box::pin(async move { Err(TreeError::UnknownInode(inode)) })
    }
    fn chunks(&self, inode: Inode) -> BoxFuture<'_, Result<Arc<[ChunkRef]>, TreeError>> {
        Box::pin(async move { Err(TreeError::UnknownInode(inode)) })
    }
    fn locate(
        &self,
        inode: Inode,
        _: std::time::Duration,
    ) -> BoxFuture<'_, Result<Option<Attributes>, TreeError>> {
        Box::pin(async move { Err(TreeError::UnknownInode(inode)) })
    }
    fn totals(&self) -> (u64, u64) {
        (self.0, 0)
    }
}

/// What the kernel would have: the revision that each directory shows.
#[derive(Default)]
pub(super) struct Kernel {
    pub(super) shown: Mutex<BTreeMap<PathBuf, u64>>,
    /// Whether catalogs can be had.
    pub(super) catalogs: AtomicBool,
    /// Whether the node's certificate leaves the repository out.
    pub(super) out_of_scope: AtomicBool,
    /// Whether there is a keeper, and what it holds.
    pub(super) keeps: AtomicBool,
    pub(super) left: Mutex<BTreeMap<PathBuf, Shown>>,
    /// Directories whose mounts are dead, and that somebody uses.
    pub(super) dead: Mutex<BTreeSet<PathBuf>>,
    pub(super) busy: Mutex<BTreeSet<PathBuf>>,
    /// What the repository's history says, and the directories that its revisions have.
    pub(super) history: Mutex<History>,
    pub(super) paths: Mutex<BTreeMap<u64, &'static str>>,
    /// A root that a stratum would give.
    pub(super) stratum: Mutex<Option<Vec<u8>>>,
    /// A directory whose catalogs nobody sends.
    pub(super) silent: Mutex<Option<String>>,
}

/// A source that has nothing.
struct Nobody;

impl ChunkSource for Nobody {
    fn read(&self, pieces: Vec<Piece>, _: Class) -> BoxFuture<'_, Result<Vec<Bytes>, SourceError>> {
        let chunk = pieces[0].chunk.id;
        Box::pin(async move { Err(SourceError::Unavailable { chunk, detail: "nobody".to_owned() }) })
    }
}

struct DoubleMounter {
    kernel: Arc<Kernel>,
    registry: Arc<Repositories>,
}

struct DoubleMount {
    kernel: Arc<Kernel>,
    directory: PathBuf,
    shown: Mutex<Shown>,
}

impl DoubleMount {
    fn boxed(kernel: &Arc<Kernel>, directory: &Path, shown: &Shown) -> Arc<dyn Mounted> {
        let (kernel, directory, shown) = (kernel.clone(), directory.to_owned(), Mutex::new(shown.clone()));
        Arc::new(Self { kernel, directory, shown })
    }
}

impl Mounter for DoubleMounter {
    fn find_root<'a>(&'a self, _: &'a RepositoryName) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async {
            let root = self.kernel.stratum.lock().unwrap().clone().ok_or("http://stratum: refused")?;
            self.registry.accept_root(&root).map(drop).map_err(|e| e.to_string())
        })
    }
    fn history<'a>(&'a self, _: &'a VerifiedRoot) -> BoxFuture<'a, Result<History, String>> {
        Box::pin(async { Ok(self.kernel.history.lock().unwrap().clone()) })
    }
    fn open<'a>(
        &'a self,
        shown: &'a Shown,
        options: &'a MountOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Tree>, OpenError>> {
        Box::pin(async {
            if self.kernel.silent.lock().unwrap().as_ref() == Some(&options.path) {
                std::future::pending::<()>().await;
            }
            if !self.kernel.catalogs.load(Ordering::SeqCst) {
                return Err(OpenError::Catalogs("no source".to_owned()));
            }
            let has = self.kernel.paths.lock().unwrap().get(&shown.revision().0).copied().unwrap_or_default();
            if !options.path.is_empty() && options.path != has {
                return Err(OpenError::Path(ViewError::NotThere(options.path.clone())));
            }
            Ok(Arc::new(Marked(shown.revision().0)) as Arc<dyn Tree>)
        })
    }
    fn is_out_of_scope(&self, _: &RepositoryName) -> bool {
        self.kernel.out_of_scope.load(Ordering::SeqCst)
    }
    fn fill_parts(&self, _: &RepositoryName) -> FillParts {
        FillParts {
            source: Arc::new(Nobody),
            store: Arc::new(crate::store::MemoryChunks::new(0)),
            budget: crate::catalog::CatalogBudget::new(0),
            quota_bytes: 1 << 20,
        }
    }
    fn resume<'a>(
        &'a self,
        _: &'a RepositoryName,
        directory: &'a Path,
        _: &'a MountOptions,
    ) -> BoxFuture<'a, Left> {
        let mut all = self.kernel.left.lock().unwrap();
        let left = match all.get(directory) {
            None => Left::Nothing,
            Some(_) if !self.kernel.catalogs.load(Ordering::SeqCst) => Left::NotYet("no source".to_owned()),
            Some(_) if !self.kernel.shown.lock().unwrap().contains_key(directory) => Left::Unmounted,
            Some(shown) => Left::Resumed(DoubleMount::boxed(&self.kernel, directory, shown), shown.clone()),
        };
        if !matches!(left, Left::NotYet(_)) {
            all.remove(directory);
        }
        drop(all);
        Box::pin(async { left })
    }
    fn leftovers(&self) -> Vec<PathBuf> {
        self.kernel.left.lock().unwrap().keys().cloned().collect()
    }
    fn let_go<'a>(&'a self, directory: &'a Path) -> BoxFuture<'a, ()> {
        if self.kernel.left.lock().unwrap().remove(directory).is_some() {
            self.kernel.shown.lock().unwrap().remove(directory);
        }
        Box::pin(async {})
    }
    fn clear<'a>(&'a self, _: &'a Path) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }
    fn mount<'a>(
        &'a self,
        shown: &'a Shown,
        directory: &'a Path,
        _: &'a MountOptions,
        tree: Arc<dyn Tree>,
    ) -> BoxFuture<'a, Result<Arc<dyn Mounted>, MountError>> {
        if !directory.is_dir() {
            let path = directory.display().to_string();
            return Box::pin(async { Err(MountError::NotThere { path }) });
        }
        self.kernel.shown.lock().unwrap().insert(directory.to_owned(), tree.totals().0);
        Box::pin(async { Ok(DoubleMount::boxed(&self.kernel, directory, shown)) })
    }
}

impl Mounted for DoubleMount {
    fn switch<'a>(&'a self, shown: &'a Shown, tree: Arc<dyn Tree>) -> BoxFuture<'a, Result<(), String>> {
        *self.shown.lock().unwrap() = shown.clone();
        self.kernel.shown.lock().unwrap().insert(self.directory.clone(), tree.totals().0);
        Box::pin(async { Ok(()) })
    }
    fn life(&self) -> Life {
        if self.kernel.dead.lock().unwrap().contains(&self.directory) {
            return Life::Dead;
        }
        let is_there = self.kernel.shown.lock().unwrap().contains_key(&self.directory);
        if is_there { Life::Live } else { Life::Unmounted }
    }
    fn profile(&self) -> Profile {
        Profile::SmallFiles
    }
    fn lacks(&self) -> Vec<String> {
        vec!["luck".to_owned()]
    }
    fn leave(&self) -> bool {
        let keeps = self.kernel.keeps.load(Ordering::SeqCst);
        if keeps {
            let shown = self.shown.lock().unwrap().clone();
            self.kernel.left.lock().unwrap().insert(self.directory.clone(), shown);
        }
        keeps
    }
    fn unmount_if_idle(&self) -> BoxFuture<'_, bool> {
        let is_busy = self.kernel.busy.lock().unwrap().contains(&self.directory);
        if !is_busy {
            self.kernel.shown.lock().unwrap().remove(&self.directory);
        }
        Box::pin(async move { !is_busy })
    }
    fn unmount(&self, _: Duration) -> BoxFuture<'_, io::Result<()>> {
        self.kernel.shown.lock().unwrap().remove(&self.directory);
        self.kernel.dead.lock().unwrap().remove(&self.directory);
        Box::pin(async { Ok(()) })
    }
}

/// An agent's state folder, a mount point, a repository with keys, and the kernel's double.
pub(super) struct World {
    pub(super) dir: TempDir,
    pub(super) keys: Keys,
    pub(super) registry: Arc<Repositories>,
    pub(super) kernel: Arc<Kernel>,
}

pub(super) fn name() -> RepositoryName {
    "sw.example.org".parse().unwrap()
}

impl World {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        let keys = Keys::open_or_create(&dir.path().join("keys"), &name(), ambient::unix_now()).unwrap();
        let registry = Arc::new(Repositories::open(&dir.path().join("registry")).unwrap());
        let card = RepositoryCard {
            name: name(),
            fingerprint: keys.fingerprint(),
            strata: vec!["http://stratum".into()],
            issued: UnixTime(1),
        };
        registry.add_by_hand(card).unwrap();
        let kernel = Arc::new(Kernel::default());
        kernel.catalogs.store(true, Ordering::SeqCst);
        Self { dir, keys, registry, kernel }
    }

    /// The table of an agent that starts now.
    pub(super) fn table(&self) -> MountTable {
        let mounter = DoubleMounter { kernel: self.kernel.clone(), registry: self.registry.clone() };
        let file = self.dir.path().join("mounts.json");
        MountTable::open(Box::new(mounter), self.registry.clone(), file).unwrap()
    }

    pub(super) fn request(&self) -> MountRequest {
        MountRequest {
            repository: name(),
            directory: self.dir.path().join("mnt"),
            fill: false,
            options: MountOptions::default(),
        }
    }

    pub(super) fn root(&self, revision: u64, lifetime_s: u64) -> Vec<u8> {
        let now = ambient::unix_now();
        let chunk = ChunkRef {
            id: ContentId::of(&revision.to_le_bytes()),
            plain_len: 7,
            place: Place { segment: ContentId::of(b"s"), ordinal: 0, offset: 0, stored_len: 9 },
        };
        let root = Root {
            repository: name(),
            revision: Revision(revision),
            signings: 0,
            root_catalog: chunk,
            catalog_index: chunk,
            history: chunk,
            previous: (revision > 1).then(|| ContentId::of(b"previous")),
            inodes: 1,
            plain_bytes: 0,
            chunking: Chunking::default(),
            issued: UnixTime(now.0 - 10),
            expires: UnixTime(now.0 - 5 + lifetime_s),
        };
        SignedRoot::sign(&root, &self.keys).unwrap()
    }

    pub(super) fn publish(&self, revision: u64, lifetime_s: u64) {
        if let Some(before) = self.registry.newest_root(&name()) {
            self.kernel.history.lock().unwrap().push(PastRevision::of(&before));
        }
        let verdict = self.registry.accept_root(&self.root(revision, lifetime_s)).unwrap();
        assert!(matches!(verdict, RootVerdict::Fresh(_)), "{verdict:?}");
    }

    pub(super) fn shown(&self) -> Option<u64> {
        self.kernel.shown.lock().unwrap().get(&self.request().directory).copied()
    }
}
