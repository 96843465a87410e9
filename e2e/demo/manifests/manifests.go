// Package manifests holds the bookstore of the demo as plain manifests: OSM's
// topology, names, labels and SMI objects, so that what works here works for
// those who come from there.
//
// The files can be read and applied by hand as well. Their images are written
// ${IMAGE:bookstore}, which whoever applies them replaces, as does
//
//	sed 's|${IMAGE:bookstore}|outrigger.local/bookstore:dev|' bookbuyer.yaml | kubectl apply -f -
//
// They do not set a traffic policy mode: in permissive mode the thief is let
// through.
package manifests

import (
	_ "embed" // for the manifests
	"strings"
)

var (
	//go:embed namespaces.yaml
	namespaces string
	//go:embed bookwarehouse.yaml
	bookwarehouse string
	//go:embed bookstore.yaml
	bookstore string
	//go:embed bookbuyer.yaml
	bookbuyer string
	//go:embed bookthief.yaml
	bookthief string
	//go:embed http-route-groups.yaml
	routeGroups string
)

// Each of these is one or several YAML documents, and is never changed.
var (
	// Bookstore is the application: four namespaces, the warehouse, two
	// versions of the store, the buyer and the thief.
	Bookstore = stream(namespaces, bookwarehouse, bookstore, bookbuyer, bookthief)

	// Policy is what the buyer and the stores may do, and an even split
	// between the stores.
	Policy = stream(routeGroups, Targets, SplitEven)

	// Targets is the part of Policy without which nothing is allowed.
	//
	//go:embed traffic-targets.yaml
	Targets string

	// SplitEven sends half of the requests to either store.
	//
	//go:embed traffic-split-50-50.yaml
	SplitEven string

	// SplitShifted is the same object, and sends a tenth of them to v1.
	//
	//go:embed traffic-split-10-90.yaml
	SplitShifted string

	// Job asks the store once, as the buyer.
	//
	//go:embed job.yaml
	Job string
)

// stream makes one stream of YAML documents of several.
func stream(documents ...string) string { return strings.Join(documents, "---\n") }
