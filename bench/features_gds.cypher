// What the peer is asked. Every statement yields as little as it can: GDS skips what nobody reads.

// Payments from one account to another are one relationship that counts them, as in graphs.PaymentGraph.
// name: project
CALL gds.graph.project($graph, 'Account', {
  PAID: {type: 'SENT', orientation: 'NATURAL', properties: {count: {property: '*', aggregation: 'COUNT'}}},
  TOGETHER: {type: 'SENT', orientation: 'UNDIRECTED', aggregation: 'SINGLE'}
}) YIELD nodeCount, relationshipCount

// name: drop
CALL gds.graph.drop($graph, false) YIELD graphName

// name: project_small
MATCH (sender:Account)-[sent:SENT]->(receiver:Account)
WHERE sent.seq <= $up_to_seq
WITH DISTINCT sender, receiver
RETURN gds.graph.project($graph, sender, receiver)

// name: nodes
CALL gds.degree.stream($graph, {relationshipTypes: ['PAID']}) YIELD nodeId
RETURN collect(nodeId), collect(gds.util.asNode(nodeId).id)

// name: pagerank
CALL gds.pageRank.stats($graph, $options) YIELD computeMillis

// name: pagerank_values
CALL gds.pageRank.stream($graph, $options) YIELD nodeId, score RETURN collect(nodeId), collect(score)

// name: components
CALL gds.wcc.stats($graph, $options) YIELD componentCount

// name: components_values
CALL gds.wcc.stream($graph, $options) YIELD nodeId, componentId RETURN collect(nodeId), collect(componentId)

// name: core
CALL gds.kcore.stats($graph, $options) YIELD degeneracy

// name: core_values
CALL gds.kcore.stream($graph, $options) YIELD nodeId, coreValue RETURN collect(nodeId), collect(coreValue)

// What it counts is handed to the clustering coefficient, as ours is.
// name: triangles
WITH $options AS options
CALL gds.triangleCount.mutate($graph, options {.*, mutateProperty: 'triangles'}) YIELD globalTriangleCount
RETURN globalTriangleCount

// name: triangles_values
CALL gds.triangleCount.stream($graph, $options) YIELD nodeId, triangleCount
RETURN collect(nodeId), collect(triangleCount)

// name: clustering
WITH $options AS options
CALL gds.localClusteringCoefficient.stats($graph, options {.*, triangleCountProperty: 'triangles'})
YIELD averageClusteringCoefficient
RETURN averageClusteringCoefficient

// name: clustering_values
CALL gds.localClusteringCoefficient.stream($graph, $options) YIELD nodeId, localClusteringCoefficient
RETURN collect(nodeId), collect(localClusteringCoefficient)

// name: eigenvector
CALL gds.eigenvector.stats($graph, $options) YIELD computeMillis

// name: eigenvector_values
CALL gds.eigenvector.stream($graph, $options) YIELD nodeId, score RETURN collect(nodeId), collect(score)

// name: betweenness
CALL gds.betweenness.stats($graph, $options) YIELD computeMillis

// name: betweenness_values
CALL gds.betweenness.stream($graph, $options) YIELD nodeId, score
RETURN collect(nodeId), collect(gds.util.asNode(nodeId).id), collect(score)
