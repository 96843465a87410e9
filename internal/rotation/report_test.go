package rotation

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func TestReport(t *testing.T) {
	now := time.Unix(5000, 0)
	// The newer one ends sooner: another issuer gives less.
	old, fresh := &Leaf{Authority: "a", End: now.Add(time.Hour)}, &Leaf{Authority: "b", End: now.Add(time.Minute)}
	one := Report{Replica: "r1", Until: now.Add(time.Minute), Generation: 3, Serving: "a", Groups: Gather([]Known{
		{UID: "1", Connected: true, Trusts: 3, Leaf: old, At: now}, {UID: "2", Connected: true, Trusts: 3, Leaf: &Leaf{Authority: "a", End: now.Add(time.Minute)}}, {UID: "gone", Trusts: 9},
	})}
	if len(one.Groups) != 2 || one.Groups[0].Leaf.End != now.Add(time.Minute) {
		t.Errorf("groups are %+v", one.Groups)
	}
	two := Report{Replica: "r2", Until: now.Add(time.Minute), Generation: 2, Groups: Gather([]Known{{UID: "1", Leaf: fresh, At: now.Add(time.Second)}})}
	stale := Report{Replica: "r3", Until: now.Add(-2 * skew), Groups: Gather([]Known{{UID: "3", Connected: true, Trusts: 3}})}
	gone := Report{Replica: "r4", Until: now.Add(time.Minute), Groups: Gather([]Known{{UID: "3", Connected: true, Trusts: 3}})}
	packed, err := one.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if one, err = DecodeReport(packed); err != nil {
		t.Fatal(err)
	}
	seen := Merge([]Pod{{Name: "s/1", UID: "1"}, {Name: "s/2", UID: "2"}, {Name: "s/3", UID: "3"}}, []string{"r1", "r2", "r3"}, []Report{one, two, stale, gone}, now)
	if p := seen.Pods[0]; !p.Connected || p.Trusts != 3 || p.Leaf.Authority != "b" {
		t.Errorf("a pod that was signed by another replica later: %+v", p)
	}
	if p := seen.Pods[2]; p.Connected || p.Trusts != 0 || p.Leaf != nil {
		t.Errorf("old reports and those of replicas that are gone count: %+v", p)
	}
	if r := seen.Replicas; !r[0].Heard || !r[1].Heard || r[2].Heard || r[0].Serving != "a" {
		t.Errorf("replicas: %+v", r)
	}
}

// TestReportOfAReplicaWhoseClockIsBehind holds that clocks which are minutes apart stop no
// rotation, although a report counts for seconds while one is under way.
func TestReportOfAReplicaWhoseClockIsBehind(t *testing.T) {
	now := time.Unix(5000, 0)
	r := Report{Replica: "r1", Until: now.Add(20*time.Second - 4*time.Minute), Generation: 3, ServingEnd: now.Add(time.Hour)}
	seen := Merge(nil, []string{"r1"}, []Report{r}, now)
	if len(seen.Replicas) != 1 || !seen.Replicas[0].Heard || seen.Replicas[0].Generation != 3 {
		t.Errorf("the replica is %+v; want it to be heard", seen.Replicas)
	}
	if ends := SoonestEnds([]Report{r}, seen, now); !ends.Serving.Equal(r.ServingEnd) {
		t.Errorf("its certificate ends at %s; want %s", ends.Serving, r.ServingEnd)
	}
}

func TestReportOfTenThousandPodsFits(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test
	var all []Known
	for range 10_000 {
		all = append(all, Known{UID: fmt.Sprintf("%08x-%04x-4%03x-%04x-%012x", r.Uint32(), r.IntN(1<<16), r.IntN(1<<12), r.IntN(1<<16), r.Int64N(1<<48)), Connected: true, Trusts: 7, Leaf: &Leaf{Authority: "outrigger-ca", Domain: "cluster.local", Roots: []string{strings.Repeat("ab", 32)}}})
	}
	packed, err := Report{Replica: "outriggerd-1", Groups: Gather(all)}.Encode()
	if err != nil || len(packed) > 512<<10 {
		t.Errorf("%d bytes, %v; a ConfigMap takes 1 MiB", len(packed), err)
	}
	t.Logf("%d bytes", len(packed))
}
