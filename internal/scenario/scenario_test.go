package scenario

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/internal/golden"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
)

func TestMain(m *testing.M) { os.Exit(golden.CheckStale(m, "testdata")) }

func TestStories(t *testing.T) {
	for _, s := range Stories(t) {
		t.Run(s.Name, func(t *testing.T) {
			if _, err := os.Stat(filepath.Join(s.Dir, "README.md")); err != nil {
				t.Errorf("a story says what it shows: %v", err)
			}
			golden.Compare(t, filepath.Join(s.Dir, "snapshot.golden.yaml"), readable(t, s.Snapshot.Dump()))
			golden.Compare(t, filepath.Join(s.Dir, "problems.golden.yaml"), readable(t, append([]ingest.Problem{}, s.Problems...)))
			for _, p := range s.Proxies {
				golden.Compare(t, filepath.Join(p.Dir, "view.golden.yaml"), readable(t, p.View))
			}
		})
	}
}

// TestOrderAndPurity builds each story from shuffled lists: the result must be
// the same to the byte, and the objects as they were.
func TestOrderAndPurity(t *testing.T) {
	for _, s := range Stories(t) {
		t.Run(s.Name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(3, 4))
			for range 10 {
				objs := shuffle(rng, s.Objects)
				before := deepCopy(objs)
				snap, problems := ingest.Build(objs, s.Options)
				if !reflect.DeepEqual(before, objs) {
					t.Fatal("Build changed its input")
				}
				if snap.Version() != s.Snapshot.Version() {
					t.Errorf("another order makes another snapshot:\n%s", readable(t, snap.Dump()))
				}
				if got, want := string(readable(t, problems)), string(readable(t, s.Problems)); got != want {
					t.Errorf("another order makes other problems:\n%s\ninstead of\n%s", got, want)
				}
				for _, p := range s.Proxies {
					v, _ := snap.View(p.ID)
					if got, want := string(readable(t, v)), string(readable(t, p.View)); got != want {
						t.Errorf("another order makes another view of %s:\n%s\ninstead of\n%s", p.ID, got, want)
					}
				}
			}
		})
	}
}

// readable writes v as YAML, without what would only be noise: the keys, which are
// hashes and change with every line of the rest, and the roots.
func readable(t *testing.T, v any) []byte {
	t.Helper()
	data, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var plain any
	if err := yaml.Unmarshal(data, &plain); err != nil {
		t.Fatal(err)
	}
	withoutNoise(plain)
	if data, err = yaml.Marshal(plain); err != nil {
		t.Fatal(err)
	}
	return data
}

func withoutNoise(v any) {
	switch v := v.(type) {
	case map[string]any:
		delete(v, "key")
		delete(v, "bundle")
		delete(v, "trustBundle")
		for _, inner := range v {
			withoutNoise(inner)
		}
	case []any:
		for _, inner := range v {
			withoutNoise(inner)
		}
	}
}

func shuffle(rng *rand.Rand, o ingest.Objects) ingest.Objects {
	v := reflect.ValueOf(&o).Elem()
	for i := range v.NumField() {
		list := v.Field(i)
		out := reflect.MakeSlice(list.Type(), 0, list.Len())
		for _, j := range rng.Perm(list.Len()) {
			out = reflect.Append(out, list.Index(j))
		}
		list.Set(out)
	}
	return o
}

func deepCopy(o ingest.Objects) ingest.Objects {
	v := reflect.ValueOf(&o).Elem()
	for i := range v.NumField() {
		list := v.Field(i)
		out := reflect.MakeSlice(list.Type(), 0, list.Len())
		for j := range list.Len() {
			copied := list.Index(j).Interface().(runtime.Object).DeepCopyObject()
			out = reflect.Append(out, reflect.ValueOf(copied))
		}
		list.Set(out)
	}
	return o
}
