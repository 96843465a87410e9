// Package api is the folder of the foreign kinds that the mesh reads. Outrigger
// has none of its own. There is one package for each group and version, written
// by hand to be small: only what the mesh reads, under upstream's names, so that
// users' manifests apply unchanged. Deep copies and CRDs are generated from them
// (make generate).
//
// SMI: access (who may call whom), specs (which requests and ports), split (how
// calls are shared out). Package ingest says what they mean.
package api

import (
	"k8s.io/apimachinery/pkg/runtime"

	accessv1alpha3 "github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	specsv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/specs/v1alpha4"
	splitv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha4"
)

// AddToScheme adds every kind that the mesh reads, each in the one version that
// it reads it in.
func AddToScheme(s *runtime.Scheme) error {
	builder := runtime.NewSchemeBuilder(accessv1alpha3.AddToScheme, specsv1alpha4.AddToScheme, splitv1alpha4.AddToScheme)
	return builder.AddToScheme(s)
}
