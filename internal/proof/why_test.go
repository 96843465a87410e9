package proof

import (
	"flag"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/e2e/questions"
	"github.com/outrigger-mesh/outrigger/internal/manifest"
	"github.com/outrigger-mesh/outrigger/internal/why"
)

var (
	firstSeed = flag.Uint64("seed", 1, "the first random mesh")
	meshes    = flag.Int("meshes", 0, "how many random meshes to try; zero is as many as take a few seconds")
)

// usualMeshes is how many are compared with package why in a few seconds.
const usualMeshes = 300

// A place is what is called: a Service port by its name, or an address.
type place struct {
	front
	address string
	port    int32
}

func (p place) String() string {
	if p.address != "" {
		return fmt.Sprintf("%s:%d", p.address, p.port)
	}
	return p.front.String()
}

// places are all that callers of a cluster call.
func (p policy) places() []place {
	var out []place
	for _, f := range p.list {
		if !f.headless() {
			out = append(out, place{front: f})
		}
	}
	for _, a := range cast() {
		for _, port := range append(podPorts(), 8090) {
			out = append(out, place{address: a.address, port: port})
		}
	}
	return out
}

// requests are those that are made to a place: few to an address, of which there
// are many.
func (p place) requests() []request {
	all := requests()
	if p.address != "" {
		return append(all[:2:2], all[8], all[15])
	}
	return all
}

// expect says what becomes of a call.
func (p policy) expect(from *corev1.Pod, to place, r request) outcome {
	if to.address != "" {
		return p.dial(from, to.address, to.port, r)
	}
	return p.call(from, to.front, r)
}

func question(from *corev1.Pod, to place, r request) why.Question {
	where := fmt.Sprintf("%s:%d", to.address, to.port)
	if to.address == "" {
		where = fmt.Sprintf("%s.%s:%d", to.Name, to.Namespace, to.front.port.Port)
	}
	q := why.Question{Caller: from.Namespace + "/" + from.Name, URL: "tcp://" + where}
	if !r.tcp {
		q.Method, q.URL, q.Headers = r.method, "http://"+where+r.path, []string{"host: " + r.host}
		for _, h := range r.headers {
			q.Headers = append(q.Headers, h[0]+": "+h[1])
		}
	}
	return q
}

// A told is what package why tells of one kind of server.
type told struct {
	what   verdict
	server string
	port   int32
	plain  bool
}

// asTold is an outcome in the words of package why, which names servers by their
// account.
func (p policy) asTold(o outcome) map[told]float64 {
	out := map[told]float64{}
	for e, part := range o {
		t := told{what: e.what, port: e.port, plain: e.plain}
		if ns, name, ok := strings.Cut(e.pod, "/"); ok {
			if pod := p.find(ns, name); p.meshed(pod) {
				t.server = accountOf(pod).String()
			}
		}
		if e.what == unavailable {
			t = told{what: unavailable}
		}
		out[t] += part
	}
	return out
}

func tellings(a why.CallAnswer) map[told]float64 {
	out := map[told]float64{}
	for _, b := range a.Backends {
		t := told{what: served, server: b.Server, port: int32(b.Port), plain: b.Transport == "plain"}
		switch {
		case b.Verdict == why.Denied && b.Side == why.Client:
			t = told{what: denied}
		case b.Verdict == why.Denied:
			t.what = denied
		case b.Reason == why.NoEndpoint:
			t = told{what: unavailable}
		}
		out[t] += b.Percent / 100
	}
	return out
}

// differs says in what the answer of package why differs from what is expected, or
// nothing.
func (p policy) differs(want outcome, a why.CallAnswer) string {
	verdict := why.Partly
	switch {
	case !want.has(denied):
		verdict = why.Allowed
	case !want.has(served) && !want.has(unavailable):
		verdict = why.Denied
	}
	if a.Verdict != verdict {
		return fmt.Sprintf("why says %s, want %s", a.Verdict, verdict)
	}
	if len(a.Backends) == 0 {
		return ""
	}
	wanted, got := p.asTold(want), tellings(a)
	for t, part := range wanted {
		if math.Abs(got[t]-part) > 1e-6 {
			return fmt.Sprintf("why tells of %+v, want %+v", got, wanted)
		}
	}
	if len(got) != len(wanted) {
		return fmt.Sprintf("why tells of %+v, want %+v", got, wanted)
	}
	return ""
}

// askWhy compares every call of a cluster, and returns how many there were and the
// first that differs, with package why's answer.
func askWhy(c cluster) (calls int, fault string) {
	p := newPolicy(c)
	w := why.World{Snapshot: c.build(""), Namespaces: c.Namespaces, Pods: c.Pods, Services: c.Services}
	for _, from := range c.Pods {
		if hasEnded(from) {
			continue
		}
		for _, to := range p.places() {
			for _, r := range to.requests() {
				calls++
				want := p.expect(from, to, r)
				a, err := w.Call(question(from, to, r))
				difference := ""
				if err != nil {
					difference = err.Error()
				} else {
					difference = p.differs(want, a)
				}
				if difference == "" && calls%adviceEach == 0 {
					difference = c.follow(w, from, to, r, a)
				}
				if difference != "" {
					return calls, fmt.Sprintf("%s/%s to %s: %s\n%s; by the rules it is %s\n%s", from.Namespace, from.Name, to, r, difference, want, a.Text())
				}
			}
		}
	}
	return calls, ""
}

// adviceEach is how many calls there are to one whose proposed change is made: each
// takes a Snapshot of its own.
const adviceEach = 7

// mostChanges is how many changes may have to follow each other: one proxy after the
// other may be in the way, and an answer is about the first.
const mostChanges = 3

// follow makes the changes that package why proposes, and says why a call is still
// denied when it proposes the last, or nothing. It stops where none can be applied.
func (c cluster) follow(w why.World, from *corev1.Pod, to place, r request, a why.CallAnswer) string {
	for range mostChanges {
		if a.Verdict == why.Allowed || a.Change == nil || a.Change.Command == "" && a.Change.YAML == "" {
			return ""
		}
		changed, err := questions.Apply(manifest.Objects{Objects: c.Objects}, *a.Change)
		if err != nil {
			return err.Error()
		}
		c.Objects = changed.Objects
		w.Snapshot, w.Namespaces, w.Services = c.build(""), c.Namespaces, c.Services
		if a, err = w.Call(question(from, to, r)); err != nil {
			return err.Error()
		}
		if difference := newPolicy(c).differs(newPolicy(c).expect(from, to, r), a); difference != "" {
			return "with the change that is proposed " + difference + "\n" + a.Text()
		}
	}
	if a.Verdict != why.Allowed {
		return "with all changes that are proposed it is still denied\n" + a.Text()
	}
	return ""
}

// TestWhyFollowsTheRules compares package why with the written rules.
func TestWhyFollowsTheRules(t *testing.T) {
	t.Parallel()
	n := usualMeshes
	if *meshes > 0 {
		n = *meshes
	}
	calls := 0
	for seed := *firstSeed; seed < *firstSeed+uint64(n); seed++ {
		c := newDice(seed, false).mesh()
		asked, fault := askWhy(c)
		calls += asked
		if fault == "" {
			continue
		}
		c = smallest(c, func(c cluster) bool { _, fault := askWhy(c); return fault != "" })
		_, fault = askWhy(c)
		t.Fatalf("seed %d: %s\n%s", seed, fault, c)
	}
	t.Logf("%d meshes from seed %d, %d calls", n, *firstSeed, calls)
}

// TestWhyFollowsTheRulesInKnownMeshes is the same for meshes that once told the
// two apart. The name of each says what was wrong.
func TestWhyFollowsTheRulesInKnownMeshes(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("find meshes in testdata: %d, %v", len(files), err)
	}
	for _, file := range files {
		if _, fault := askWhy(read(t, file)); fault != "" {
			t.Errorf("%s: %s", file, fault)
		}
	}
}
