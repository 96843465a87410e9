package local

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWithoutPlugins(t *testing.T) {
	const file = `package catalog

import (
	"github.com/spiffe/spire/pkg/common/catalog"
	"github.com/spiffe/spire/pkg/server/plugin/upstreamauthority"
	"github.com/spiffe/spire/pkg/server/plugin/upstreamauthority/awspca"
	"github.com/spiffe/spire/pkg/server/plugin/upstreamauthority/disk"
	spireplugin "github.com/spiffe/spire/pkg/server/plugin/upstreamauthority/spire"
)

func BuiltIns() []catalog.BuiltIn {
	return []catalog.BuiltIn{
		awspca.BuiltIn(),
		disk.BuiltIn(),
		spireplugin.BuiltIn(),
	}
}
`
	const want = `package catalog

import (
	"github.com/spiffe/spire/pkg/common/catalog"
	"github.com/spiffe/spire/pkg/server/plugin/upstreamauthority"
	"github.com/spiffe/spire/pkg/server/plugin/upstreamauthority/disk"
)

func BuiltIns() []catalog.BuiltIn {
	return []catalog.BuiltIn{
		disk.BuiltIn(),
	}
}
`
	got := string(withoutPlugins([]byte(file), []string{"server/plugin/upstreamauthority/disk", "server/plugin/keymanager/memory"}))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the catalogue (-want +got):\n%s", diff)
	}
}
