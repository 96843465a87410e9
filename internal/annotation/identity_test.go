package annotation

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseIdentity(t *testing.T) {
	cases := map[string]struct {
		reason string
		value  string
		want   Source
		faulty bool
	}{
		"Mesh":            {reason: "The default can be said.", value: "mesh"},
		"WorkloadAPI":     {reason: "The socket is a file of a volume.", value: "workload-api:spiffe/spire-agent.sock", want: Source{Volume: "spiffe", Socket: "spire-agent.sock"}},
		"Files":           {reason: "The names of the files are fixed.", value: "files:svid", want: Source{Volume: "svid"}},
		"Empty":           {reason: "Nothing is not a source.", value: "", faulty: true},
		"Unknown":         {reason: "A typing error must not fall back to the mesh.", value: "spire", faulty: true},
		"NoSocket":        {reason: "Which file?", value: "workload-api:spiffe", faulty: true},
		"EmptySocket":     {reason: "Which file?", value: "workload-api:spiffe/", faulty: true},
		"Upwards":         {reason: "A path must not leave its volume.", value: "workload-api:spiffe/..", faulty: true},
		"Path":            {reason: "Nor lead deeper.", value: "workload-api:spiffe/a/b", faulty: true},
		"NoVolume":        {reason: "Where?", value: "files:", faulty: true},
		"ImpossibleName":  {reason: "No volume can be called that.", value: "files:Some_Volume", faulty: true},
		"SocketWithSpace": {reason: "It would be hard to see.", value: "workload-api:spiffe/a b", faulty: true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := ParseIdentity(map[string]string{Identity: tc.value})
			if fault := (*Error)(nil); errors.As(err, &fault) != tc.faulty {
				t.Fatalf("%s\ngot error %v", tc.reason, err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%s\n(-want +got):\n%s", tc.reason, diff)
			}
		})
	}
	if got, err := ParseIdentity(nil); err != nil || got != (Source{}) {
		t.Errorf("without the annotation: %v %v; want the mesh", got, err)
	}
}
