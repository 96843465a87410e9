// Package api is the folder of the foreign kinds that the mesh reads. Outrigger
// has none of its own. There is one package for each group and version, written
// by hand to be small: only what the mesh reads, under upstream's names, so that
// users' manifests apply unchanged. Deep copies and CRDs are generated from them
// (make generate).
//
// SMI: access (who may call whom), specs (which requests and ports), split (how
// calls are shared out). Package ingest says what they mean.
//
// The mesh reads each kind in one version; package conversion says objects of the
// others in it. status is what the mesh says about objects.
package api
