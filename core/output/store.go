// Package output keeps what attempts print: it moves bytes from named pipes
// (lanes) into segment files without copying them through the process, knows
// every byte by its absolute offset, and lets any number of readers follow.
package output

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/plugins/failpoint"
)

// StreamID names one of the two streams of an attempt.
type StreamID uint8

// The streams, by their file descriptors.
const (
	Stdout StreamID = 1
	Stderr StreamID = 2
)

const (
	defaultQuota = 8 << 30
	lowDisk      = 256 << 20 // free bytes below which people are told
	leastDisk    = 16 << 20  // and below which nothing new is started; a twentieth of a small disk
	maxMove      = 1 << 20   // bytes per splice
	openLanes    = 512       // free lanes whose read ends stay open
)

// sizes of files. Small outputs share a segment; a stream that outgrows
// private goes on in chunks of its own, so that its head can be given back.
type sizes struct{ shared, private, chunk, move uint64 }

func defaultSizes() sizes {
	return sizes{
		shared: 64 << 20, private: failpoint.Sooner[uint64](256<<10, 16<<10), chunk: 8 << 20,
		move: failpoint.Sooner[uint64](maxMove, 16<<10), // what waited in a pipe in one move would not need a chunk
	}
}

// Config configures a Store.
type Config struct {
	Dir   string // lanes and segments lie below it
	Quota int64  // bytes of all output; 0: 8 GiB, or half of the free space if less
	Boot  string // names the boot of the host; "": the kernel's boot id
	Log   *slog.Logger
	Now   func() time.Time // nil: time.Now
	// Exceeded is called once per stream with policy Fail that passes its limit.
	// It must not block.
	Exceeded func(job.Key, StreamID)
	// Retention says how long the bytes of ended attempts are kept.
	Retention Retention
	// Uptime is a clock that nobody sets: how long the host has been up, sleep
	// included. nil: CLOCK_BOOTTIME.
	Uptime func() time.Duration

	sizes sizes                   // seam for tests; zero: defaultSizes
	fault func(step string) error // seam for faults of the disk; nil: none
	pace  func(int) time.Duration // seam for tests; nil: gatherTime
}

// Store keeps the output of all attempts of a worker. Its methods may be
// called concurrently; Run is the one mover of bytes.
type Store struct {
	config Config
	quota  int64
	epoll  int
	wake   int // eventfd
	began  time.Time

	mu       sync.Mutex // guards the fields below; never held during I/O on segments
	attempts map[job.Key]*attempt
	byToken  map[int32]*stream // by the token that epoll reports
	token    int32             // newest token; fds are reused, tokens are not
	free     []*lane
	nudged   []*stream // for the mover to look at, whatever epoll says
	lanes    int       // number of the newest lane
	segments map[uint64]*segment
	number   uint64   // of the newest segment
	shared   *segment // where small outputs go now
	notes    *segment // of an earlier life; its index has room kept for ends and removals
	total    int64
	tried    int64              // total when giving back was last tried
	blocked  map[*stream]string // streams that wait for room, and why
	since    map[string]time.Time
	closed   bool
	given    []*attempt // of which the index does not say yet that they were given back
	spent    []*segment // whose bytes the mover is to remove
	scratch  []byte     // of throwAway, by the mover alone

	age *ageClock

	idxMu sync.Mutex // guards appends to index files
}

// attempt is the output of one attempt.
type attempt struct {
	key      job.Key
	opts     Options
	streams  [2]*stream
	drained  chan struct{}
	over     bool // no process of it can open a pipe any more: a hung up one is at its end
	finished bool
	// discarded: the job was removed while somebody holds a pipe of it. Its bytes are
	// gone, and so is what still comes.
	discarded bool
	lane      *lane // nil when no process can write any more
	acked     bool  // the scheduler knows the end (Settled)
	failed    bool
	ended     time.Duration // by Store.age; 0: an earlier version ended it
	given     reason        // why its bytes were given back; 0: they were not
	noted     []*segment    // shared ones that speak of it
}

// stream is one of its two streams.
type stream struct {
	id        StreamID
	owner     *attempt
	fd        int
	size      uint64 // bytes moved
	extents   []extent
	lost      []span   // what a damaged disk took
	private   *segment // chunk that it goes on in
	eof       bool
	cut       bool          // bytes may be missing at its end: nobody held its pipe for a while
	moving    bool          // bytes may be on their way from the pipe to a segment
	parted    bool          // the mover must begin nothing with the pipe any more
	rest      chan struct{} // closed when it has let go; nil: nobody waits
	exceeded  bool
	lastWrite time.Time
	sealed    bool // size and sha256 are final
	sha256    string
	hash      *hasher
	changed   chan struct{} // made when somebody waits, closed when something changes
	readers   int           // that are open
	plenty    chan struct{} // made when somebody gathers, closed at enough bytes or the end
	enough    uint64
}

// span is a range of a stream.
type span struct{ from, to uint64 }

// extent says where a range of a stream lies.
type extent struct {
	seg    *segment
	segOff uint64
	off    uint64
	length uint64
	time   time.Time
}

// Options says how the output of one attempt is kept.
type Options struct {
	Policy   job.OutputPolicy
	Limit    uint64 // bytes per stream; 0 is job.DefaultOutputLimit
	UID, GID int    // user of the job, who owns the pipes; -1 is the worker's own
	// Unborn is for Resume: no process may have opened the pipes yet, so that none
	// holds them proves no end. Once one has, or never will, NoWriter asks for it.
	Unborn bool
}

// own tells whether the job runs as the worker's user.
func (o *Options) own() bool {
	return (o.UID < 0 || o.UID == os.Getuid()) && (o.GID < 0 || o.GID == os.Getgid())
}

// Lanes names the two pipes that a job writes to.
type Lanes struct{ Stdout, Stderr string }

// wakeToken is the eventfd's token; lanes count from 1.
const wakeToken = 0

// Open opens the store below config.Dir and recovers what is there.
func Open(c Config) (*Store, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.sizes == (sizes{}) {
		c.sizes = defaultSizes()
	}
	if c.pace == nil {
		c.pace = gatherTime
	}
	if c.Boot == "" {
		// Without one, every boot is the same: nothing is known of crashes.
		id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
		c.Boot = string(id)
	}
	if c.fault == nil {
		c.fault = func(string) error { return nil }
	}
	for _, d := range []string{"lanes", "segments"} {
		// A job has its pipes open and needs no way to them: nobody may open those of
		// another job of the same user by their names (P19).
		dir := filepath.Join(c.Dir, d)
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil {
			return nil, errs.E("open the output store", errs.Internal, "OUTPUT", err)
		}
	}
	s := &Store{
		config: c, attempts: map[job.Key]*attempt{}, byToken: map[int32]*stream{}, segments: map[uint64]*segment{},
		blocked: map[*stream]string{}, since: map[string]time.Time{}, began: time.Now(),
	}
	var err error
	if s.quota, err = quota(c); err != nil {
		return nil, err
	}
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, errs.E("open the output store", errs.Internal, "OUTPUT", err)
	}
	if s.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, errs.E("open the output store", errs.Internal, "OUTPUT", err)
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: wakeToken}
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, s.wake, &event); err != nil {
		return nil, errs.E("open the output store", errs.Internal, "OUTPUT", err)
	}
	if s.age, err = openAge(filepath.Join(c.Dir, "age"), c.Boot, c.Uptime); err != nil {
		return nil, errs.E("open the output store", errs.Internal, "OUTPUT", err).
			WithHint("move away what lies there; ages then begin again, and output is kept for longer")
	}
	if err := s.recover(); err != nil {
		return nil, errs.E("recover the output store", errs.Internal, "OUTPUT", errors.Join(err, s.Close()))
	}
	return s, nil
}

func quota(c Config) (int64, error) {
	if c.Quota > 0 {
		return c.Quota, nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(c.Dir, &fs); err != nil {
		return 0, errs.E("open the output store", errs.Internal, "OUTPUT", err)
	}
	return min(defaultQuota, int64(fs.Bavail)*fs.Bsize/2), nil
}

// Close releases descriptors. Run must have returned.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	for _, l := range s.free {
		l.remove()
	}
	for _, a := range s.attempts {
		if a.lane != nil {
			a.lane.close() // the pipes stay: a restarted worker resumes them
		}
	}
	for _, seg := range s.segments {
		if seg.dirty && !seg.spent {
			s.announceSize(seg)
		}
		seg.close()
	}
	s.saveAge()
	return errors.Join(unix.Close(s.epoll), unix.Close(s.wake))
}

// Take gives an attempt a pair of pipes: new ones to another user than the worker's.
func (s *Store) Take(key job.Key, o Options) (Lanes, error) {
	if free, least := s.disk(); free >= 0 && free < least {
		return Lanes{}, errs.E("take lanes", errs.Exhausted, job.ReasonDiskFull,
			fmt.Errorf("%d MiB are free in %s: nothing new is started below %d MiB", free>>20, s.config.Dir, least>>20)).
			WithHint("make room on the worker's disk")
	}
	a, l, number := s.reserve(key, o)
	if a == nil {
		return Lanes{}, errs.E("take lanes", errs.Exists, "OUTPUT", fmt.Errorf("attempt %v has output already", key))
	}
	var err error
	if l == nil {
		l, err = makeLane(filepath.Join(s.config.Dir, "lanes"), number, o)
	}
	if err == nil {
		err = l.open()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		err = s.attach(a, l)
	}
	if err != nil {
		s.unlist(a)
		delete(s.attempts, key)
		if l != nil {
			l.remove()
		}
		return Lanes{}, errs.E("make lanes", errs.Internal, "OUTPUT", err)
	}
	return l.paths, nil
}

// reserve makes the attempt known, with a free lane that it may use or the number of
// a new one. It returns nothing when the attempt is known already.
func (s *Store) reserve(key job.Key, o Options) (a *attempt, l *lane, number int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.attempts[key] != nil {
		return nil, nil, 0
	}
	a = newAttempt(key, o)
	s.attempts[key] = a
	if n := len(s.free); n > 0 && o.own() {
		l, s.free = s.free[n-1], s.free[:n-1]
		return a, l, 0
	}
	s.lanes++
	return a, nil, s.lanes
}

func newAttempt(key job.Key, o Options) *attempt {
	if o.Limit == 0 {
		o.Limit = job.DefaultOutputLimit
	}
	a := &attempt{key: key, opts: o, drained: make(chan struct{})}
	for i := range a.streams {
		a.streams[i] = &stream{id: StreamID(i + 1), owner: a, fd: -1, hash: &hasher{}}
	}
	return a
}

// attach lets the mover listen to a pair of pipes; s.mu is held. Edge
// triggered: an idle lane costs nothing.
func (s *Store) attach(a *attempt, l *lane) error {
	a.lane = l
	for i, st := range a.streams {
		st.fd = l.fds[i]
		st.eof = false
		if l.tokens[i] != 0 {
			s.byToken[l.tokens[i]] = st
			continue
		}
		s.token++
		event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLHUP | unix.EPOLLET, Fd: s.token}
		if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, st.fd, &event); err != nil {
			return errs.E("listen to a lane", errs.Internal, "OUTPUT", err)
		}
		l.tokens[i] = s.token
		s.byToken[s.token] = st
	}
	return nil
}

// Resume takes up an attempt again after a restart of the worker. What its
// processes wrote meanwhile waits in the pipes, as long as anybody holds them: the
// process or its plugin. Where nobody did, what the dead worker had not moved is
// lost; nothing tells how much it was, so the end of such a stream is declared to be
// perhaps missing (P8), unless Whole is called.
func (s *Store) Resume(key job.Key, lanes Lanes, o Options) error {
	l, held, err := openLane(lanes)
	if err != nil {
		return errs.E("reopen lanes", errs.Internal, "OUTPUT", err)
	}
	s.mu.Lock()
	a := s.attempts[key]
	if a == nil {
		a = newAttempt(key, o)
		s.attempts[key] = a
	}
	if a.finished {
		s.mu.Unlock()
		l.close()
		return nil
	}
	if o.Limit == 0 {
		o.Limit = job.DefaultOutputLimit
	}
	a.opts = o
	s.lanes = max(s.lanes, l.number)
	for i, st := range a.streams {
		st.cut = !held[i]
	}
	err = s.attach(a, l)
	s.mu.Unlock()
	if err != nil || o.Unborn {
		return err
	}
	return l.poke()
}

// Whole says that nothing was lost although nobody held the lanes when they were
// resumed: no process had opened them by then.
func (s *Store) Whole(key job.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.attempts[key]; a != nil && !a.finished {
		a.streams[0].cut, a.streams[1].cut = false, false
	}
}

// NoWriter says that no process will open the lanes any more but those that hold
// them: the start failed, or it has been made. Without any they have ended.
func (s *Store) NoWriter(key job.Key) {
	s.mu.Lock()
	a := s.attempts[key]
	var l *lane
	if a != nil {
		l = a.lane
	}
	s.mu.Unlock()
	if l == nil {
		return
	}
	if err := l.poke(); err != nil {
		s.config.Log.Error("lane not closed", "job", key.Job, "error", err)
	}
}

// Sizes tells how much each stream has written; ok is false for an unknown attempt.
func (s *Store) Sizes(key job.Key) (stdout, stderr uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.attempts[key]
	if a == nil {
		return 0, 0, false
	}
	return a.streams[0].size, a.streams[1].size, true
}

// LastWrite is when either stream last wrote; zero when never.
func (s *Store) LastWrite(key job.Key) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.attempts[key]
	if a == nil {
		return time.Time{}
	}
	if a.streams[0].lastWrite.After(a.streams[1].lastWrite) {
		return a.streams[0].lastWrite
	}
	return a.streams[1].lastWrite
}

// Keys lists every attempt that has output.
func (s *Store) Keys() []job.Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]job.Key, 0, len(s.attempts))
	for k := range s.attempts {
		out = append(out, k)
	}
	return out
}

// notify wakes the readers of a stream; s.mu is held.
func (st *stream) notify() {
	if st.changed != nil {
		close(st.changed)
		st.changed = nil
	}
	if st.plenty != nil && (st.owner.finished || st.size >= st.enough) {
		close(st.plenty)
		st.plenty = nil
	}
}

// Conditions tells what people should know: DISK_FULL, DISK_LOW, QUOTA.
func (s *Store) Conditions() []job.Condition {
	free, least := s.disk()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := map[string]string{}
	for st, why := range s.blocked {
		now[why] = fmt.Sprintf("output of job %s waits for room", st.owner.key.Job)
	}
	if free >= 0 && free < least {
		now[job.ReasonDiskFull] = cmp.Or(now[job.ReasonDiskFull], fmt.Sprintf("%d MiB are free in %s: nothing new is started", free>>20, s.config.Dir))
	}
	if free >= 0 && free < lowDisk {
		now["DISK_LOW"] = fmt.Sprintf("%d MiB are free in %s", free>>20, s.config.Dir)
	}
	var out []job.Condition
	for _, kind := range []string{job.ReasonDiskFull, "DISK_LOW", job.ReasonQuota} {
		text, ok := now[kind]
		if !ok {
			delete(s.since, kind)
			continue
		}
		if s.since[kind].IsZero() {
			s.since[kind] = s.config.Now()
		}
		out = append(out, job.Condition{Type: kind, Message: text, Since: s.since[kind]})
	}
	return out
}

// disk is what is free, -1 if that is not known, and what a start needs.
func (s *Store) disk() (free, least int64) {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.config.Dir, &fs); err != nil {
		return -1, 0
	}
	return int64(fs.Bavail) * fs.Bsize, min(leastDisk, int64(fs.Blocks)*fs.Bsize/20)
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
