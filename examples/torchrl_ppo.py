"""PPO of TorchRL: the actor is the last layer of the embedded language model, the observation its last hidden state."""

import gymnasium as gym
import torch
from torch import nn
from torchrl.collectors import Collector
from torchrl.modules import ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import textgen_env  # noqa: F401  registers the tasks
from textgen_env.integrations.networks import LMHead
from textgen_env.integrations.torchrl import make_env, masked_actor
from textgen_env.wrappers import VectorLMFeatures


def main(env_id: str = "textgen/Sentiment-v0", iterations: int = 15, seed: int = 0, **task) -> tuple[float, float]:
    """Train; the mean score of the first and of the last two batches."""
    torch.manual_seed(seed)
    tokens = gym.make_vec(env_id, num_envs=16, autoreset_mode="Disabled", **{"kl_coef": 0.01, **task})
    env, actor = make_env(VectorLMFeatures(tokens)), masked_actor(LMHead.of(tokens), ["observation"])
    env.set_seed(seed)
    width = env.observation_spec["observation"].shape[-1]
    critic = ValueOperator(nn.Sequential(nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, 1)))
    gae = GAE(gamma=1.0, lmbda=0.95, value_network=critic, average_gae=True)
    loss, scores = ClipPPOLoss(actor, critic, entropy_bonus=False), []
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    for data in Collector(env, actor, frames_per_batch=512, total_frames=512 * iterations):
        scores.append(data["next", "score"][data["next", "done"]].mean().item())
        flat = gae(data).reshape(-1)
        for batch in [flat[rows] for _ in range(3) for rows in torch.randperm(512).split(128)]:
            losses = loss(batch)
            optimizer.zero_grad()
            (losses["loss_objective"] + losses["loss_critic"]).backward()
            optimizer.step()
    return sum(scores[:2]) / 2, sum(scores[-2:]) / 2


if __name__ == "__main__":
    print("mean score: {:.3f} -> {:.3f}".format(*main()))
