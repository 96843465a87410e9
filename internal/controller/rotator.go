package controller

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

const (
	// Roots, and intermediates of the user's, are told of so long before their end. The
	// mesh renews its own intermediates when they have 60 days yet.
	rootWarning         = 60 * 24 * time.Hour
	intermediateWarning = 30 * 24 * time.Hour
	// stuck is how long nobody moves before an Event says for whom a step waits.
	stuck = 2 * time.Minute
	// roles is how often the objects that Roles reads are looked at.
	roles = 10 * time.Second
)

// A RotatorConfig says what a Rotator looks at. All fields but Roles are required.
type RotatorConfig struct {
	Cache  cache.Cache
	Client client.Client
	Lookup Lookup
	// First is the authority of the chart's values.
	First rotation.Authority
	// Open keeps authorities open besides the trusted ones, and Opened tells of all
	// that are open their roots, PEM, those's SHA-256, and why others are not.
	Open   func([]rotation.Authority)
	Opened func() map[string]rotation.Open
	// Roles returns the goal that other objects of the cluster set, nil for none, and
	// Told takes what came of it. Both may be nil.
	Roles   func(context.Context, rotation.State) (*rotation.Goal, error)
	Told    func(context.Context, rotation.State, rotation.Progress) error
	Events  events.EventRecorder
	Log     logr.Logger
	Metrics prometheus.Registerer
}

// A Rotator leads the mesh from one authority to another. It keeps nothing that is
// not in the cluster, so that the next elected replica goes on where this one was.
type Rotator struct {
	cfg     RotatorConfig
	changes burst
	last    *rotation.State
	warned  map[string]time.Time

	ends    *prometheus.GaugeVec
	steps   *prometheus.GaugeVec
	proxies *prometheus.GaugeVec
}

// NewRotator returns a Rotator that is to be started.
func NewRotator(cfg RotatorConfig) *Rotator {
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		cfg.Metrics.MustRegister(g)
		return g
	}
	return &Rotator{
		cfg: cfg, changes: newBurst(), warned: map[string]time.Time{},
		ends:    gauge("outrigger_certificate_end_seconds", "When certificates end, in seconds since 1970: roots by authority, and the soonest of the intermediates, of outriggerd's own and of the workloads'. Of the elected replica.", "kind", "authority"),
		steps:   gauge("outrigger_rotation_step", "1 for the step that the rotation of the mesh's authority is in, rest for none.", "step"),
		proxies: gauge("outrigger_rotation_proxies", "Proxies that the step of a rotation counts, and those that are done.", "state"),
	}
}

// NeedLeaderElection is true: one replica leads.
func (r *Rotator) NeedLeaderElection() bool { return true }

// Changed says that something that the Rotator looks at is other than it was.
func (r *Rotator) Changed() { r.changes.changed() }

// Start leads until ctx ends.
func (r *Rotator) Start(ctx context.Context) error {
	stop, err := watchAuthorities(ctx, r.cfg.Cache, r.cfg.Lookup.SystemNamespace, r.Changed)
	if err != nil {
		return err
	}
	defer stop()
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.changes:
		case <-tick.C:
		}
		next := hurried
		state, err := r.lead(ctx, time.Now())
		switch {
		case ctx.Err() != nil:
			return nil
		case apierrors.IsConflict(err):
		case err != nil:
			r.cfg.Log.Error(err, "the mesh's authorities are not looked after")
			next = again
		case state != nil:
			next = pace(state)
			if r.cfg.Roles != nil {
				next = min(next, roles)
			}
		}
		tick.Reset(next)
	}
}

// lead looks once and does what is safe. The state is nil where there is none yet.
func (r *Rotator) lead(ctx context.Context, now time.Time) (*rotation.State, error) {
	a, err := ReadAuthorities(ctx, r.cfg.Client, r.cfg.Lookup.SystemNamespace)
	if apierrors.IsNotFound(err) {
		return nil, r.create(ctx)
	}
	if err != nil {
		return nil, err
	}
	want, text := a.Wanted, a.Object.Data[WantedKey]
	if r.cfg.Roles != nil {
		goal, err := r.cfg.Roles(ctx, a.State)
		if err != nil {
			return nil, err
		}
		if goal != nil {
			want = a.Wanted.ByRoles(*goal, a.State)
			text = string(want.JSON())
		}
	}
	r.cfg.Open(rotation.Opening(a.State, want))
	seen, reports, err := MeshSeen(ctx, r.cfg.Cache, r.cfg.Lookup, now)
	if err != nil {
		return nil, err
	}
	seen.Open = r.cfg.Opened()
	next, progress := rotation.Next(a.State, want, seen, now)
	next.Record(seen, progress)
	if err := r.write(ctx, a, next, text); err != nil {
		return nil, err
	}
	ends := rotation.SoonestEnds(reports, seen, now)
	r.tell(a, next, progress, ends, now)
	r.measure(next, progress, ends)
	if r.cfg.Told != nil {
		if err := r.cfg.Told(ctx, next, progress); err != nil {
			return nil, err
		}
	}
	return &next, nil
}

// create writes the state of a mesh that starts, as soon as its authority is open;
// of one whose ConfigMap somebody deleted, the state that it had.
func (r *Rotator) create(ctx context.Context) error {
	state := r.last
	if state == nil {
		roots := r.cfg.Opened()[r.cfg.First.Name].Roots
		if roots == "" {
			return nil
		}
		first := rotation.NewState(r.cfg.First, roots)
		state = &first
	}
	m := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: r.cfg.Lookup.SystemNamespace, Name: AuthoritiesConfigMap},
		Data:       map[string]string{StateKey: string(state.JSON()), ChartKey: string(r.cfg.First.JSON())},
	}
	if err := r.cfg.Client.Create(ctx, m); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create ConfigMap %s/%s: %w", m.Namespace, m.Name, err)
	}
	return nil
}

// write writes the state and what is wanted if something of it is other than it was,
// and nobody wrote meanwhile.
func (r *Rotator) write(ctx context.Context, a Authorities, next rotation.State, wanted string) error {
	r.last = &next
	state, chart := string(next.JSON()), string(r.cfg.First.JSON())
	if had := a.Object.Data; had[StateKey] == state && had[ChartKey] == chart && had[WantedKey] == wanted {
		return nil
	}
	changed := a.Object.DeepCopy()
	changed.Data[StateKey], changed.Data[ChartKey] = state, chart
	if wanted != "" {
		changed.Data[WantedKey] = wanted
	}
	if err := r.cfg.Client.Update(ctx, changed); err != nil {
		return fmt.Errorf("write ConfigMap %s/%s: %w", changed.Namespace, changed.Name, err)
	}
	return nil
}

// tell says what changed in Events and the log.
func (r *Rotator) tell(a Authorities, next rotation.State, progress rotation.Progress, ends rotation.Ends, now time.Time) {
	event := func(kind, reason, format string, args ...any) {
		r.cfg.Events.Eventf(&corev1.ObjectReference{
			APIVersion: "v1", Kind: "ConfigMap", Namespace: a.Object.Namespace, Name: a.Object.Name, UID: a.Object.UID,
		}, nil, kind, reason, "Rotate", format, args...)
		r.cfg.Log.Info("authorities", "reason", reason, "message", fmt.Sprintf(format, args...))
	}
	before := a.State.Rotation
	switch now := next.Rotation; {
	case before == nil && now != nil:
		event(corev1.EventTypeNormal, "RotationStarted", "from %s to %s, wanted by %s", now.From, now.Goal.Sign, now.By)
	case before != nil && now == nil:
		event(corev1.EventTypeNormal, "RotationFinished", "%s signs; trusted are %v", next.Signing, next.Names())
	case before != nil && before.Step != now.Step:
		event(corev1.EventTypeNormal, "RotationStep", "%s is done; next: %s", before.Step, now.Step)
	}
	once := func(key string, every time.Duration, reason, format string, args ...any) {
		if now.Sub(r.warned[key]) >= every {
			r.warned[key] = now
			event(corev1.EventTypeWarning, reason, format, args...)
		}
	}
	if rot := next.Rotation; rot != nil && !rot.Paused && now.Sub(rot.StepSince) >= stuck {
		waits := progress.Problem
		if waits == "" && len(progress.Behind) > 0 {
			waits = fmt.Sprintf("%d of %d %s; first behind: %s, %s", progress.Done, progress.Total, progress.What, progress.Behind[0].Who, progress.Behind[0].Why)
		}
		if waits != "" {
			once("stuck"+string(rot.Step), 10*time.Minute, "RotationWaits", "step %s: %s", rot.Step, waits)
		}
	}
	for _, t := range next.Trusted {
		if end := soonestRoot(t.Roots); !end.IsZero() && end.Sub(now) < rootWarning {
			once("root"+t.Name, 24*time.Hour, "RootEnds", "a root of authority %s ends at %s; run: outrigger certificate rotate", t.Name, end.Format(time.RFC3339))
		}
	}
	if end := rotation.UsersIntermediate(next, ends); !end.IsZero() && end.Sub(now) < intermediateWarning {
		once("intermediate", 24*time.Hour, "IntermediateEnds", "an intermediate of authority %s ends at %s; put a newer one into its Secret", next.Serving, end.Format(time.RFC3339))
	}
	if a.Object.Data[ChartKey] != "" && !next.Chart.Same(r.cfg.First) {
		once("chart", 24*time.Hour, "ChartDiffers", "the chart's values name %s, and %s signs; run: outrigger certificate rotate --chart", r.cfg.First, next.Signing)
	}
}

// soonestRoot is when the first of some roots ends.
func soonestRoot(text string) time.Time {
	var soonest time.Time
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return soonest
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && (soonest.IsZero() || c.NotAfter.Before(soonest)) {
			soonest = c.NotAfter
		}
	}
}

// measure sets the metrics.
func (r *Rotator) measure(s rotation.State, progress rotation.Progress, ends rotation.Ends) {
	r.ends.Reset()
	set := func(kind, authority string, end time.Time) {
		if !end.IsZero() {
			r.ends.WithLabelValues(kind, authority).Set(float64(end.Unix()))
		}
	}
	for _, t := range s.Trusted {
		set("root", t.Name, soonestRoot(t.Roots))
	}
	set("intermediate", "", ends.Intermediate)
	set("serving", "", ends.Serving)
	set("workload", "", ends.Workload)
	r.steps.Reset()
	r.proxies.Reset()
	if s.Rotation == nil {
		r.steps.WithLabelValues("rest").Set(1)
		return
	}
	r.steps.WithLabelValues(string(s.Rotation.Step)).Set(1)
	r.proxies.WithLabelValues("done").Set(float64(progress.Done))
	r.proxies.WithLabelValues("total").Set(float64(progress.Total))
}
